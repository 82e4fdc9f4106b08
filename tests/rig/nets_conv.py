"""Rows of the conformance table: convolutional networks."""

import flax.linen as nn
import jax.numpy as jnp
import nets
import zoo
from conformance import plain, Row
from jax import lax
from nets_feedforward import dense, layer_norm

LAYOUTS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}


def conv(leaf, name, x, features, size=3, groups=1, bias=True, **options):
    rank = x.ndim - 2
    channels = x.shape[-1] // groups
    kernel = leaf(f"{name}/kernel", *(size,) * rank, channels, features)
    y = lax.conv_general_dilated(
        x,
        kernel,
        options.pop("strides", (1,) * rank),
        "SAME",
        dimension_numbers=LAYOUTS[rank],
        feature_group_count=groups,
        **options,
    )
    return y + leaf(f"{name}/bias", features) if bias else y


def group_norm(leaf, name, x, groups):
    y = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), -1)
    y = y - y.mean(axis=axes, keepdims=True)
    y = y * lax.rsqrt((y * y).mean(axis=axes, keepdims=True) + 1e-5)
    scale, bias = (leaf(f"{name}/{kind}", x.shape[-1]) for kind in ("scale", "bias"))
    return y.reshape(x.shape) * scale + bias


def pooled_head(leaf, x):
    return dense(leaf, "head", nn.relu(x).mean(axis=tuple(range(1, x.ndim - 1))), 3)


def group_normed_resnet(leaf, x):
    x = group_norm(leaf, "norm", conv(leaf, "stem", x, 12), 4)
    for number in range(2):
        y = group_norm(leaf, f"norm{number}a", conv(leaf, f"conv{number}a", x, 6), 2)
        y = conv(leaf, f"conv{number}b", nn.relu(y), 12)
        x = nn.relu(x + group_norm(leaf, f"norm{number}b", y, 4))
    return pooled_head(leaf, x)


def two_group_norms(first, second):
    """Two GroupNorms with different numbers of groups on one stream."""

    def forward(leaf, x):
        x = conv(leaf, "stem", x, 24)
        y = nn.relu(group_norm(leaf, "norm0", x, first))
        x = x + conv(leaf, "conv", y, 24, size=1)
        return pooled_head(leaf, group_norm(leaf, "norm1", x, second))

    return forward


def u_net(leaf, x):
    """The second of four groups of channels lies in both parts of a skip."""
    skip = nn.relu(conv(leaf, "stem", x, 14))
    x = nn.relu(conv(leaf, "inner", skip, 10))
    x = group_norm(leaf, "norm", jnp.concatenate([x, skip], axis=-1), 4)
    return pooled_head(leaf, conv(leaf, "outer", nn.relu(x), 5))


def instance_norm(leaf, x):
    x = group_norm(leaf, "norm", conv(leaf, "stem", x, 6), 6)
    return pooled_head(leaf, x)


def depthwise(leaf, x):
    """Inverted bottleneck: expand, filter every channel on its own, project."""
    x = conv(leaf, "stem", x, 6)
    y = nn.relu6(conv(leaf, "expand", x, 10, size=1))
    y = nn.relu6(conv(leaf, "filter", y, 10, groups=10))
    x = x + conv(leaf, "project", y, 6, size=1)
    return pooled_head(leaf, x)


def multiplied_depthwise(leaf, x):
    """A depthwise convolution that makes two channels of every one."""
    x = nn.relu(conv(leaf, "stem", x, 5))
    return pooled_head(leaf, conv(leaf, "filter", x, 10, groups=5))


def squeeze_and_excite(leaf, x):
    x = nn.relu(conv(leaf, "stem", x, 8))
    squeezed = nn.relu(dense(leaf, "squeeze", x.mean(axis=(1, 2)), 3))
    gates = nn.sigmoid(dense(leaf, "excite", squeezed, 8))
    return pooled_head(leaf, x * gates[:, None, None])


def channel_shuffle(leaf, x):
    """Grouped convolutions with the groups dealt out anew between them."""
    x = nn.relu(conv(leaf, "stem", x, 12, size=1))
    x = nn.relu(conv(leaf, "first", x, 12, groups=3))
    n, h, w, c = x.shape
    x = jnp.swapaxes(x.reshape(n, h, w, 3, c // 3), 3, 4).reshape(n, h, w, c)
    return pooled_head(leaf, conv(leaf, "second", x, 8, groups=4))


def dilated(leaf, x):
    x = nn.relu(conv(leaf, "stem", x, 6))
    for number, rate in enumerate((1, 2, 4)):
        x = nn.relu(conv(leaf, f"conv{number}", x, 5 + number, rhs_dilation=(rate,)))
    return pooled_head(leaf, x)


def volumes(leaf, x):
    x = nn.relu(conv(leaf, "conv0", x, 5))
    x = nn.max_pool(x, (2, 2, 2), (2, 2, 2))
    return pooled_head(leaf, nn.relu(conv(leaf, "conv1", x, 6)))


def channels_first(leaf, x):
    numbers = ("NCHW", "OIHW", "NCHW")
    for number, features in enumerate((5, 6)):
        kernel = leaf(f"conv{number}/weight", features, x.shape[1], 3, 3)
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        x = nn.relu(x + leaf(f"conv{number}/bias", features)[:, None, None])
    return x.mean(axis=(2, 3)) @ leaf("head/kernel", 6, 3)


def unet(leaf, x):
    """Down and up again, with the skipped features concatenated."""
    first = nn.relu(conv(leaf, "down0", x, 4))
    second = nn.relu(conv(leaf, "down1", nn.avg_pool(first, (2, 2), (2, 2)), 6))
    kernel = leaf("up/kernel", 2, 2, 6, 5)
    x = lax.conv_transpose(second, kernel, (2, 2), "SAME") + leaf("up/bias", 5)
    x = jnp.concatenate([first, nn.relu(x)], axis=-1)
    return conv(leaf, "out", nn.relu(conv(leaf, "merge", x, 7)), 2, size=1)


def densenet(leaf, x):
    x = conv(leaf, "stem", x, 4)
    for number, features in enumerate((3, 5)):
        y = conv(leaf, f"conv{number}", nn.relu(x), features)
        x = jnp.concatenate([x, y], axis=-1)
    x = nn.avg_pool(conv(leaf, "transition", x, 6, size=1), (2, 2), (2, 2))
    return pooled_head(leaf, x)


def convnext(leaf, x):
    """Depthwise filter, LayerNorm, an MLP over channels, scaled, on a stream."""
    x = layer_norm(leaf, "stem_norm", conv(leaf, "stem", x, 6, size=2))
    for number in range(2):
        y = conv(leaf, f"filter{number}", x, 6, groups=6)
        y = layer_norm(leaf, f"norm{number}", y)
        y = nn.gelu(dense(leaf, f"up{number}", y, 9 + number))
        scale = leaf(f"scale{number}/scale", 6)
        x = x + scale * dense(leaf, f"down{number}", y, 6)
    return pooled_head(leaf, x)


def mixer(leaf, x):
    """MLPs over tokens and over channels in turn."""
    x = dense(leaf, "embed", x, 6)
    for number in range(2):
        y = jnp.swapaxes(layer_norm(leaf, f"norm{number}a", x), 1, 2)
        y = nn.gelu(dense(leaf, f"tokens{number}a", y, 7))
        x = x + jnp.swapaxes(dense(leaf, f"tokens{number}b", y, 5), 1, 2)
        y = nn.gelu(
            dense(leaf, f"up{number}", layer_norm(leaf, f"norm{number}b", x), 8)
        )
        x = x + dense(leaf, f"down{number}", y, 6)
    return dense(leaf, "head", x.mean(axis=1), 3)


def standardized(leaf, x):
    """The kernels are brought to mean 0 and deviation 1 per unit."""

    def unit_kernel(name, *shape):
        kernel = leaf(name, *shape)
        if not name.endswith("kernel") or len(shape) != 4:
            return kernel
        kernel = kernel - kernel.mean(axis=(0, 1, 2))
        return kernel / jnp.sqrt((kernel**2).mean(axis=(0, 1, 2)) + 1e-5)

    x = nn.relu(conv(unit_kernel, "stem", x, 5))
    return pooled_head(leaf, conv(unit_kernel, "conv", x, 6))


def response_norm(leaf, x):
    """Channels are divided by what their neighbours do: they have places."""
    x = conv(leaf, "stem", x, 6)
    near = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 3), (1,) * 4, "SAME")
    return pooled_head(leaf, conv(leaf, "conv", x / jnp.sqrt(1 + near), 5))


def spectral(leaf, x):
    """Channels are mixed in frequencies of the two spatial axes."""
    x = dense(leaf, "in", x, 5)
    modes = jnp.fft.rfft2(x, axes=(1, 2))
    weight = lax.complex(leaf("re/kernel", 5, 6), leaf("im/kernel", 5, 6))
    x = jnp.fft.irfft2(modes @ weight, axes=(1, 2), s=x.shape[1:3])
    return pooled_head(leaf, x)


def resized(leaf, x):
    """Features are resized by interpolation before the next layer."""
    import jax

    x = nn.relu(conv(leaf, "stem", x, 5))
    x = jax.image.resize(x, (x.shape[0], 8, 8, 5), "bilinear")
    return pooled_head(leaf, conv(leaf, "conv", x, 6))


IMAGES = (24, 6, 6, 3)

ROWS = {
    **{
        f"{name}, {form}": Row(
            lambda name=name, form=form: nets.build(name, form),
            ", ".join(
                f"label{i} {s.size}"
                for i, s in enumerate(nets.ARCHITECTURES[name].symmetries)
            ),
        )
        for name, form in [
            ("mlp", "nnx"),
            ("vgg_max", "plain"),
            ("resnet20", "linen"),
            ("bottleneck", "nnx"),
        ]
    },
    "padded shortcut": Row(
        zoo.NETS["padded shortcut"], "stream 4, inner 6, low 2, high 3"
    ),
    "GroupNorm ResNet": Row(
        lambda: plain(group_normed_resnet, IMAGES),
        "groups 4, stream 3 per groups, groups0 2, inner0 3 per groups0, groups1 2, "
        "inner1 3 per groups1",
    ),
    "GroupNorms of 2 and 6 groups": Row(
        lambda: plain(two_group_norms(2, 6), IMAGES),
        "outer 2, middle 3 per outer, inner 4 per outer middle",
    ),
    "GroupNorms of 4 and 6 groups": Row(
        lambda: plain(two_group_norms(4, 6), IMAGES),
        "a 4, b 2, c 2, d 4, e 4, f 2, g 2, h 4",
    ),
    "GroupNorm across a skip connection": Row(
        lambda: plain(u_net, IMAGES),
        "a 6, b 4, c 2, d 6, e 6, outer 5",
    ),
    "InstanceNorm": Row(lambda: plain(instance_norm, IMAGES), "channels 6"),
    "grouped convolution": Row(
        zoo.NETS["grouped convolution"],
        "groups 3, inputs 4 per groups, outputs 2 per groups",
    ),
    "depthwise convolution": Row(
        lambda: plain(depthwise, IMAGES), "stream 6, hidden 10"
    ),
    "depthwise convolution, two outputs each": Row(
        lambda: plain(multiplied_depthwise, IMAGES),
        "channels 5, outputs 2 per channels",
    ),
    "squeeze and excite": Row(
        lambda: plain(squeeze_and_excite, IMAGES), "channels 8, squeezed 3"
    ),
    "channel shuffle": Row(
        lambda: plain(channel_shuffle, IMAGES),
        "groups 3, inputs 4 per groups, dealt 4, outputs 2 per dealt",
    ),
    "dilated, 1-D": Row(
        lambda: plain(dilated, (24, 9, 3)), "stem 6, first 5, second 6, third 7"
    ),
    "volumes, 3-D": Row(lambda: plain(volumes, (24, 4, 4, 4, 2)), "first 5, second 6"),
    "channels first": Row(
        lambda: plain(channels_first, (24, 3, 6, 6)), "first 5, second 6"
    ),
    "U-Net": Row(lambda: plain(unet, IMAGES), "skip 4, inner 6, up 5, merged 7"),
    "DenseNet": Row(
        lambda: plain(densenet, IMAGES), "stem 4, first 3, second 5, transition 6"
    ),
    "ConvNeXt": Row(lambda: plain(convnext, IMAGES), "stream 6, hidden0 9, hidden1 10"),
    "MLP-Mixer": Row(
        lambda: plain(mixer, (24, 5, 4)),
        "stream 6, tokens0 7, hidden0 8, tokens1 7, hidden1 8",
    ),
    "weight standardization": Row(
        lambda: plain(standardized, IMAGES), "first 5, second 6"
    ),
    "local response normalization": Row(
        lambda: plain(response_norm, IMAGES), "second 5"
    ),
    "spectral convolution": Row(lambda: plain(spectral, IMAGES), "first 5, second 6"),
    "resized features": Row(lambda: plain(resized, IMAGES), "first 5, second 6"),
}
