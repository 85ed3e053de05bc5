"""Training: loss, schedule, arguments, CondViTTrainer; and Mini CLIP, where the Mini recipe starts."""
