"""The node: rclpy's side of `worker`. Parameters, topics and states are described in docs/ros2.md.

The executor's thread takes pictures and parameters; the worker's thread answers and publishes.
"""

from __future__ import annotations

import array
import importlib
import queue
import time
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

import pixelrt
from pixelrt.errors import InputError
from pixelrt.overlay import painted
from pixelrt.ros.health import Health, Status, in_words
from pixelrt.ros.messages import (
    DETECTIONS,
    LABEL_INFO,
    Maker,
    detections_message,
    image_message,
    label_info_message,
    label_map,
)
from pixelrt.ros.parameters import CHANGEABLE, PARAMETERS, QUESTION, question_of, without_blanks
from pixelrt.ros.worker import Answered, Options, Worker

NAME = "pixelrt"
# Isaac ROS's names of profiles -> (reliability, durability)
PROFILES = {
    "DEFAULT": (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
    "SENSOR_DATA": (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
    "SYSTEM_DEFAULT": (ReliabilityPolicy.SYSTEM_DEFAULT, DurabilityPolicy.SYSTEM_DEFAULT),
    "PARAMETERS": (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
    "PARAMETER_EVENTS": (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
    "SERVICES_DEFAULT": (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
}
TRANSPORTS = {"raw": ("image", Image), "compressed": ("image/compressed", CompressedImage)}
TICK_S, TELL_S = 0.1, 1.0  # how often health is looked at, and told where it stays the same


class SegmentNode(LifecycleNode):  # type: ignore[misc]
    """Configured: a bundle is loaded and warm. Active: pictures are taken and answers published."""

    def __init__(self, load: Callable[..., Any] = pixelrt.load) -> None:
        super().__init__(NAME)
        self._load = load
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        self._health = Health(0.0, 0.0)
        self._worker: Worker | None = None
        self._image_subscription: Any = None
        self._made: dict[str, Any] = {}  # topic -> publisher
        self._told_names: dict[int, str] | None = None
        self._later: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # for the executor's thread
        self._told: tuple[int, float] = (-1, 0.0)
        self._classes = {name: message_class(name) for name in (DETECTIONS, LABEL_INFO)}
        if None in self._classes.values():
            self.get_logger().warning(
                "vision_msgs is not installed: detections and label_info are not published. "
                "Install it: sudo apt install ros-$ROS_DISTRO-vision-msgs"
            )
        self._maker = Maker(
            lambda name, **fields: message_class(name)(**fields),
            lambda octets: array.array("B", octets.tobytes()),
        )
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(TICK_S, self._tick)
        self.create_subscription(String, "prompt", self._prompt_came, 1)
        self.add_on_set_parameters_callback(self._parameters_set)

    # ---- states ---------------------------------------------------------------------------------------------

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        try:
            self._configure()
        except Exception as error:
            self.get_logger().error(in_words(error))
            self._forget()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        assert self._worker is not None
        topic, kind = TRANSPORTS[self._value("image_transport")]
        done = super().on_activate(state)
        self._told_names = None
        self._worker.start()
        qos = qos_of(self._value("input_qos"), self._value("input_qos_depth"))
        self._image_subscription = self.create_subscription(kind, topic, self._worker.put, qos)
        self.get_logger().info(
            f"active: {self._worker.bundle} answers about {self.resolve_topic_name(topic)}"
        )
        return done

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        self._quieten()
        return super().on_deactivate(state)

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        done = super().on_cleanup(state)
        self._forget()
        return done

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        self._quieten()
        return super().on_shutdown(state)

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        self._quieten()
        self._forget()
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        value = self._value
        if not value("bundle"):
            raise InputError("the parameter bundle is empty. Give the folder of a bundle: -p bundle:=FOLDER")
        if value("image_transport") not in TRANSPORTS:
            raise InputError(f"image_transport is {value('image_transport')!r}. Choose raw or compressed.")
        qos_of(value("input_qos"), value("input_qos_depth"))
        output = qos_of(value("output_qos"), value("output_qos_depth"))
        options = Options(
            value("backend"),
            value("max_new_tokens"),
            value("numbers"),
            value("tracking"),
            value("track_every"),
            value("track_drift"),
        )
        self._health = Health(value("timeout_s"), value("stall_s"))
        worker = Worker(options, self._health, self._publish, load=self._load)
        query = question_of(*(self._value(name) for name in QUESTION))
        if query is not None:
            worker.ask(query)
        clock = time.perf_counter()
        worker.load(value("bundle"))
        self.get_logger().info(
            f"loaded {value('bundle')} in {time.perf_counter() - clock:.1f} s: {self._health.about['backend']}"
        )
        self._worker = worker
        self._advertise(output)

    def _advertise(self, output: QoSProfile) -> None:
        topics = {
            "label_map": (Image, output),
            "overlay": (Image, output),
            "detections": (self._classes[DETECTIONS], output),
            "label_info": (self._classes[LABEL_INFO], LATCHED),
        }
        self._made = {
            name: self.create_lifecycle_publisher(kind, f"~/{name}", qos)
            for name, (kind, qos) in topics.items()
            if kind is not None
        }

    def _quieten(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        if self._image_subscription is not None:
            self.destroy_subscription(self._image_subscription)
            self._image_subscription = None

    def _forget(self) -> None:
        for publisher in self._made.values():
            self.destroy_lifecycle_publisher(publisher)
        self._made, self._worker = {}, None

    # ---- the worker's thread --------------------------------------------------------------------------------

    def _publish(self, answered: Answered) -> None:
        header, masks = answered.header, answered.masks
        names = dict(answered.names)
        if names != self._told_names and "label_info" in self._made:  # before the map that needs it
            self._made["label_info"].publish(label_info_message(self._maker, header, names))
            self._told_names = names
        size = (answered.picture.shape[0], answered.picture.shape[1])
        drawn = label_map(masks, answered.numbers, size, max(names, default=0))
        self._made["label_map"].publish(image_message(self._maker, header, drawn))
        if "detections" in self._made:
            found = detections_message(self._maker, header, masks, answered.numbers)
            self._made["detections"].publish(found)
        if self._made["overlay"].get_subscription_count():
            self._health.overlays += 1
            shown = painted(answered.picture, masks)
            self._made["overlay"].publish(image_message(self._maker, header, shown))
        age_ns = self.get_clock().now().nanoseconds - (header.stamp.sec * 10**9 + header.stamp.nanosec)
        if 0 <= age_ns < 60 * 10**9:  # else the camera has another clock
            self._health.took({"camera to answer": age_ns / 1e6})

    def _bundle_changed(self, serving: str, error: str) -> None:
        def tell() -> None:
            if error:
                self.get_logger().error(f"the bundle is still {serving}: {error}")
            else:
                self.get_logger().info(f"the bundle is now {serving}")
            self.set_parameters([Parameter("bundle", value=serving)])  # it may have been set again meanwhile

        self._later.put(tell)

    # ---- the executor's thread ------------------------------------------------------------------------------

    def _tick(self) -> None:
        while not self._later.empty():
            self._later.get()()
        now = time.monotonic()
        status = self._health.status(now)
        level, told = self._told
        if status.level != level or now - told >= TELL_S:
            self._told = status.level, now
            self._diagnostics.publish(self._diagnosis(status))

    def _diagnosis(self, status: Status) -> DiagnosticArray:
        entry = DiagnosticStatus(
            level=bytes([status.level]),
            name=f"{self.get_name()}: segmentation",
            message=status.message,
            hardware_id=status.values.get("backend", ""),
            values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
        )
        array_of_one = DiagnosticArray(status=[entry])
        array_of_one.header.stamp = self.get_clock().now().to_msg()
        return array_of_one

    def _prompt_came(self, message: String) -> None:
        (result,) = self.set_parameters([Parameter("prompt", value=message.data)])
        if not result.successful:
            self.get_logger().error(f"the question was not changed: {result.reason}")

    def _parameters_set(self, parameters: list[Parameter]) -> SetParametersResult:
        """Take what was set, or refuse all of it with a reason."""
        new = {parameter.name: parameter.value for parameter in parameters if parameter.name in PARAMETERS}
        worker = self._worker
        try:
            if worker is not None:
                self._take(worker, new)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _take(self, worker: Worker, new: dict[str, Any]) -> None:
        fixed = [name for name in new if name not in CHANGEABLE and new[name] != self._value(name)]
        if fixed:
            raise InputError(
                f"{fixed[0]} is read when the node is configured. Clean it up and configure it again."
            )
        if any(name in new for name in QUESTION):
            asked = {name: new.get(name, self.get_parameter(name).value) for name in QUESTION}
            query = question_of(*(without_blanks(asked[name]) for name in QUESTION))
            if query is None:
                raise InputError("the question is empty. Give a prompt, or classes for a task of classes.")
            worker.ask(query)
        if "bundle" in new and new["bundle"] != worker.bundle:
            worker.change_bundle(new["bundle"], self._bundle_changed)
        self._health.timeout_s = new.get("timeout_s", self._health.timeout_s)
        self._health.stall_s = new.get("stall_s", self._health.stall_s)

    def _value(self, name: str) -> Any:
        return without_blanks(self.get_parameter(name).value)


def qos_of(profile: str, depth: int) -> QoSProfile:
    """Raises InputError."""
    found = PROFILES.get(str(profile).upper())
    if found is None or depth < 1:
        raise InputError(
            f"QoS {profile!r} with depth {depth}: choose one of {', '.join(PROFILES)}, depth 1 or more."
        )
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=found[0], durability=found[1])


LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)


def message_class(name: str) -> Any:
    """The class of `package/msg/Name`, None where the package is not installed."""
    package, _, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except ModuleNotFoundError:
        return None


def main(arguments: list[str] | None = None, load: Callable[..., Any] = pixelrt.load) -> int:
    """Run the node until it is interrupted; 2 where it cannot be configured."""
    rclpy.init(args=arguments)
    try:
        node = SegmentNode(load)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        get_logger(NAME).error(
            f"{' '.join(str(error).split())}. A number of seconds has a point: -p stall_s:=5.0"
        )
        rclpy.try_shutdown()
        return 2
    try:
        if node.get_parameter("autostart").value:
            for trigger in (node.trigger_configure, node.trigger_activate):
                if trigger() != TransitionCallbackReturn.SUCCESS:
                    return 2
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node._quieten()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0
