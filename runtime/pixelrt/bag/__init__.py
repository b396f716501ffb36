"""`pixelrt bag`: masks and detections for the images of a recording, written into a copy of it. No ROS is needed.

`recording` reads and writes bags with rosbags, `vision_msgs` has message definitions that rosbags lacks, `journal`
keeps what is known after each image, `processing` puts them together.
"""
