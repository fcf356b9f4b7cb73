"""`dwtriton.inference`: a checkpoint made ready, pixels in and boxes out."""
