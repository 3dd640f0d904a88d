"""The demonstration: real images, unseen classes, one command (``python -m fastdml demo``)."""
