"""colcon's side of the node; the code is in the Python package pixelrt."""

from glob import glob

from setuptools import setup

NAME = "pixelrt_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.yaml")),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="pixelrt contributors",
    maintainer_email="pixelrt@users.noreply.github.com",
    description="Pixel masks for what a sentence names.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"segment = {NAME}.segment:main"]},
)
