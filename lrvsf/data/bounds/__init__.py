"""What a file may take before it is read: bounds on images, Parquet pages and tar members, whatever they claim."""
