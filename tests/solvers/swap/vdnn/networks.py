"""The networks of the vDNN paper as problems, from their published layer tables alone.

AlexNet, OverFeat (fast) and GoogLeNet are those of convnet-benchmarks, the usual ones of 2016; VGG-16 is configuration
D of Simonyan and Zisserman. A layer is one forward op, ACTV included, which runs in place. In backward ACTV reads Y and
the gradient of Y and computes another one, since nothing runs in place in a problem; then CONV and FC read X and that,
POOL reads X, Y and its gradient, and each computes the gradient of X, except the first layer. Values are FP32.

Parameters and their gradients are omitted, since vDNN moves feature maps, and so are the workspaces of cuDNN.
Times: FLOP at 6.1 TFLOP/s or bytes at 336 GB/s, a Titan X; backward of a convolution counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remat_solvers.problem import Link, Op, Problem, Value

FLOP_PER_S, BYTES_PER_S = 6.1e12, 336e9
PCIE = Link(12_800_000_000, 12_800_000_000)
FLOAT = 4

Map = tuple[int, int, int]  # channels, height (= width), value


@dataclass
class Network:
    """Layers in order, each of which reads the maps of earlier ones."""

    name: str
    batch: int
    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)  # per value: channels, height
    macs: list[int] = field(default_factory=list)  # per layer and image

    def image(self, height: int) -> Map:
        self.shapes.append((3, height))
        return 3, height, 0

    def conv(self, x: Map, channels: int, kernel: int, stride: int = 1, pad: int = 0) -> Map:
        height = (x[1] + 2 * pad - kernel) // stride + 1
        return self._layer("convolution", (x,), channels, height, x[0] * kernel**2)

    def pool(self, x: Map, kernel: int, stride: int, pad: int = 0, *, ceil: bool = False) -> Map:
        height = (x[1] + 2 * pad - kernel + (stride - 1 if ceil else 0)) // stride + 1
        return self._layer("max_pool2d_with_indices", (x,), x[0], height, 0)

    def fc(self, x: Map, features: int) -> Map:
        return self._layer("addmm", (x,), features, 1, x[0] * x[1] ** 2)

    def concat(self, *maps: Map) -> Map:
        return self._layer("cat", maps, sum(m[0] for m in maps), maps[0][1], 0)

    def loss(self, x: Map) -> None:
        self._layer("_log_softmax", (x,), x[0], 1, 0)

    def _layer(self, target: str, maps: tuple[Map, ...], channels: int, height: int, macs: int) -> Map:
        value = len(self.shapes)
        self.shapes.append((channels, height))
        self.macs.append(macs * channels * height**2)
        inputs = tuple(m[2] for m in maps)
        name = f"{target} {len(self.ops)}"
        self.ops.append(Op(name, "forward", inputs, (value,), self._time_ns(inputs, value), target=target))
        return channels, height, value

    def bytes_of(self, value: int) -> int:
        channels, height = self.shapes[value]
        return FLOAT * self.batch * channels * height**2

    def _time_ns(self, inputs: tuple[int, ...], value: int) -> int:
        moved = sum(map(self.bytes_of, (*inputs, value)))
        return int(1e9 * max(2 * self.macs[-1] * self.batch / FLOP_PER_S, moved / BYTES_PER_S))

    def problem(self) -> Problem:
        values = [Value(f"y{v}", self.bytes_of(v), "activation" if v else "constant") for v in range(len(self.shapes))]
        ops = list(self.ops)
        gradients: dict[int, list[int]] = {}  # value -> the parts of its gradient, one per layer that read it
        for op in reversed(self.ops):
            (y,) = op.outputs
            arriving = tuple(gradients.get(y, ()))
            reads: tuple[int, ...] = (*op.inputs, y, *arriving)
            if op.target in ("convolution", "addmm"):
                values.append(Value(f"h{y}", self.bytes_of(y), "gradient"))
                moved_ns = int(1e9 * 3 * self.bytes_of(y) / BYTES_PER_S)
                name = f"backward of ACTV {op.name}"
                ops.append(Op(name, "backward", (y, *arriving), (len(values) - 1,), moved_ns, target="back"))
                reads = (*op.inputs, len(values) - 1)
            elif op.target == "cat":  # its backward copies slices
                reads = arriving
            gradient_ids = []
            for x in op.inputs:
                values.append(Value(f"g{x}", self.bytes_of(x) if x else 0, "gradient"))
                gradients.setdefault(x, []).append(len(values) - 1)
                gradient_ids.append(len(values) - 1)
            twice = 2 if op.target in ("convolution", "addmm") else 1
            ops.append(
                Op(f"backward of {op.name}", "backward", reads, tuple(gradient_ids), twice * op.time_ns, target="back")
            )
        results = tuple(gradients[0])
        return Problem(f"{self.name} ({self.batch})", tuple(ops), tuple(values), results, PCIE)


def alexnet(batch: int) -> Network:
    net = Network("AlexNet", batch)
    x = net.pool(net.conv(net.image(224), 64, 11, 4, 2), 3, 2)
    x = net.pool(net.conv(x, 192, 5, 1, 2), 3, 2)
    for channels in (384, 256, 256):
        x = net.conv(x, channels, 3, 1, 1)
    _classifier(net, net.pool(x, 3, 2), 4096, 4096)
    return net


def overfeat(batch: int) -> Network:
    net = Network("OverFeat", batch)
    x = net.pool(net.conv(net.image(231), 96, 11, 4), 2, 2)
    x = net.pool(net.conv(x, 256, 5), 2, 2)
    for channels in (512, 1024, 1024):
        x = net.conv(x, channels, 3, 1, 1)
    _classifier(net, net.pool(x, 2, 2), 3072, 4096)
    return net


def vgg16(batch: int) -> Network:
    net = Network("VGG-16", batch)
    x = net.image(224)
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.conv(x, channels, 3, 1, 1)
        x = net.pool(x, 2, 2)
    _classifier(net, x, 4096, 4096)
    return net


INCEPTION = (  # 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection; None: pooling
    *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None),
    *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
    *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None),
    *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet(batch: int) -> Network:
    """GoogLeNet of Szegedy et al., table 1, without the auxiliary classifiers and the normalisation."""
    net = Network("GoogLeNet", batch)
    x = net.pool(net.conv(net.image(224), 64, 7, 2, 3), 3, 2, ceil=True)
    x = net.pool(net.conv(net.conv(x, 64, 1), 192, 3, 1, 1), 3, 2, ceil=True)
    for module in INCEPTION:
        if module is None:
            x = net.pool(x, 3, 2, ceil=True)
            continue
        one, three_in, three, five_in, five, pooled = module
        x = net.concat(
            net.conv(x, one, 1),
            net.conv(net.conv(x, three_in, 1), three, 3, 1, 1),
            net.conv(net.conv(x, five_in, 1), five, 5, 1, 2),
            net.conv(net.pool(x, 3, 1, 1), pooled, 1),
        )
    _classifier(net, net.pool(x, 7, 1))
    return net


def _classifier(net: Network, x: Map, *hidden: int) -> None:
    for features in (*hidden, 1000):
        x = net.fc(x, features)
    net.loss(x)
