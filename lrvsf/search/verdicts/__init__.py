"""What a calibrated model says beyond scores: is the thing in the picture, and is anything like it in the catalog?"""
