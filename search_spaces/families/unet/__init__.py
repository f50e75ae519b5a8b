"""diffusers' UNet2DConditionModel as the frame of a video network."""
