"""Small videos of a moving bright square, and a network whose heatmap is bright where the frame is."""

from fractions import Fraction

import av
import numpy
import torch
from torch import nn

from gradcam_fast.pipeline.networks import Network
from gradcam_fast.preprocess import Preprocess

SIDE, TOP = 16, 24
GROUND = (40, 120, 60)


def pictures(count=48, size=(96, 64)):
    """RGB pictures, (height,width,3): in picture i the square's left edge is at i."""
    frames = numpy.empty((count, size[1], size[0], 3), numpy.uint8)
    frames[:] = GROUND
    for i, picture in enumerate(frames):
        picture[TOP : TOP + SIDE, i : i + SIDE] = 255
    return frames


def save(
    path, frames, *, rate=24, times=None, codec="libx264", format="yuv420p", rotation=None, matrix=None, sound=False
):
    """Write pictures as a video; ``times`` in milliseconds, ``matrix`` FFmpeg's number of the colour matrix."""
    # An MP4 that says where its frames are at its beginning, so that half a file can be read.
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "10", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], format
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if matrix:
            stream.codec_context.colorspace = matrix
        noise = container.add_stream("aac", rate=8000) if sound else None
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=format, dst_colorspace=matrix)
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, 1 / Fraction(rate))
            container.mux(stream.encode(frame))
        if noise:
            samples = av.AudioFrame.from_ndarray(numpy.zeros((1, 8000), numpy.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 8000, 0
            container.mux(noise.encode(samples))
            container.mux(noise.encode())
        container.mux(stream.encode())
    return path


def load(path):
    """The pictures of a video as they are stored, (count,height,width,3), and their times in seconds."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return numpy.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), [
        float(frame.time) for frame in decoded
    ]


def centre(weights):
    """(x, y) of the middle of a map, (height,width)."""
    y, x = numpy.indices(weights.shape) + 0.5
    return float((x * weights).sum() / weights.sum()), float((y * weights).sum() / weights.sum())


def heat(pictures):
    """Where ``jet`` is hot, (...,height,width): more red than blue."""
    return (pictures[..., 0].astype(int) - pictures[..., 2]).clip(0)


class Bright(nn.Module):
    """Two classes, bright and dark; each place counts for the first by its brightness."""

    def __init__(self):
        super().__init__()
        self.brightness = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.brightness.weight, 1 / 3)

    def forward(self, images):
        mean = self.brightness(images).mean((2, 3))
        return torch.cat([mean, -mean], 1)


def bright_network(size=(64, 96), crop=None):
    """Brightness is counted from GROUND's, 73, up."""
    fit = {"fit": "stretch"} if crop is None else {"crop": crop}
    preprocess = Preprocess(size, mean=(73 / 255,) * 3, std=(1.0,) * 3, **fit)
    return Network("bright", Bright().eval(), preprocess, ("bright", "dark"))
