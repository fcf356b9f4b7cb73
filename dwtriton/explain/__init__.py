"""`dwtriton.explain`: the weights of an image's objects as pictures."""
