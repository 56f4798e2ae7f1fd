"""Images and video for models that see: decoding, sizing, patches, the tower and its projector."""
