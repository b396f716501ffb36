"""The node with its parameters from a file, the bundle and the camera from arguments.

ros2 launch pixelrt_ros segment.launch.py bundle:=FOLDER image:=/camera/image_raw prompt:="Segment the mug."
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory("pixelrt_ros")) / "config" / "segment.yaml"
    arguments = {
        "bundle": (None, "folder of the bundle"),
        "image": ("/camera/image_raw", "topic of the pictures"),
        "prompt": ("", "the question; it may change while the node runs"),
        "namespace": ("", "of the node"),
        "parameters": (str(config), "file with the other parameters"),
    }
    # As text, whatever it looks like: a prompt of "12" is no number.
    texts = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in ("bundle", "prompt")}
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in arguments.items()
            ),
            LifecycleNode(
                package="pixelrt_ros",
                executable="segment",
                name="pixelrt",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("parameters"), texts],
                remappings=[("image", LaunchConfiguration("image"))],
                output="screen",
            ),
        ]
    )
