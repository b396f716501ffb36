"""pixelrt's node for `ros2 run` and launch files."""
