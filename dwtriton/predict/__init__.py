"""`dwtriton.predict`: detections in images and videos."""
