"""ROS 2: messages to pictures and answers to messages, for the node and for `pixelrt bag`.

`images` and `messages` read and fill messages by their fields alone, so that rclpy's classes and those of rosbags both
serve. rclpy is imported in `node` only.
"""
