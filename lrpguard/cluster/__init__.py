"""The guard on a Ray cluster: a batch job over folders of images, and a Ray Serve deployment."""
