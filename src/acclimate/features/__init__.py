"""From images to features: backbones, the network that methods train, and the cache of frozen features."""
