"""What the help of each command says beside its options: prose, of at most 80 columns."""

from __future__ import annotations

EXIT_STATUS = """\
exit status:
  0    all photos were explained
  1    some photos could not be read; each is named on standard error,
       the others, if any, were explained
  2    wrong options, or something is missing without which no photo can be
       explained; standard error says what
  130  interrupted
  141  the reader of the output went away
"""

TOP = "Show where a network looks in a photo: Grad-CAM heatmaps over photos."

TOP_NOTES = f"""\
examples:
  gradcam-fast demo
  gradcam-fast explain cat.jpg --target tabby --method layercam
  gradcam-fast explain photos/ --format overlay,parquet --out maps
  gradcam-fast explain photos/ --format overlay,parquet --out maps --resume
  gradcam-fast render maps/maps.parquet --colormap viridis --out pictures
  gradcam-fast layers --model resnet18 --weights resnet18.safetensors

{EXIT_STATUS}"""

DEMO = """\
Explain photos that other packages bring along (a cat and a cup of coffee from
scikit-image; a dog and a drum from foolbox, where it is installed) with
EfficientNet-Lite0, trained on ImageNet. Works offline.

For each photo the five most probable classes are printed, and a picture is
written: photo, heatmap and overlay, a row for each of the two most probable
classes. At the end: which backend ran, and how long the explanations took
beside the bare prediction.
"""

EXPLAIN = """\
Show where a network looks in your photos.

PATH is a photo, a folder with photos in it or in folders below it, or a quoted
pattern such as 'photos/**/*.png'. Red is where the network found the most
evidence for the class, dark blue where it found the least. Every map is scaled
to its own extremes: compare places within one map, not colours between maps.
"""

EXPLAIN_NOTES = f"""\
examples:
  gradcam-fast explain cat.jpg dog.png
  gradcam-fast explain cat.jpg --target "tiger cat" --method hirescam
  gradcam-fast explain photos/ --model resnet50 --weights resnet50.pth
  gradcam-fast explain photos/ --format overlay,parquet --out maps --resume

photos:
  Every format that Pillow reads, in colour or grayscale. The EXIF orientation
  is respected, transparency is laid over white, and of an animation the first
  frame counts. Some networks see only the middle of a photo; pictures then show
  that part. In folders, hidden files and pictures of this program are passed
  over.

formats:
  overlay  DIR/NAME-gradcam.overlay.jpg: the photo with the heatmap over it, one
           for each class (.overlay-1.jpg, .overlay-2.jpg, ...) if they are
           several. The default for more than 16 photos, and then of the most
           probable class only.
  panels   DIR/NAME-gradcam.jpg: photo, heatmap and overlay side by side, a row
           under its name and probability for each class. The default for up to
           16 photos, and then of the two most probable classes; slow.
  npy      DIR/NAME-gradcam.npy: float32 (classes, height, width) in [0,1] at
           the size of the network's input.
  parquet  DIR/maps.parquet, a folder that pandas.read_parquet reads: for each
           map the path, class, score, extremes and, in 'map', its levels from 0
           to 255 at the resolution of the layer. gradcam-fast render makes
           pictures of it.

  NAME is the photo's; a number follows where two photos have the same. Of a
  folder, the folders below are kept. Pictures of an earlier run are replaced,
  other files never. Every file is written whole or not at all, so that after an
  interruption the same command with --resume goes on where it stopped.

messages:
  Of up to 16 photos the most probable classes and the files are printed. Of
  more, a line at the end says how many there were and how fast; on a terminal
  a bar shows how far it is.

{EXIT_STATUS}"""

RENDER = """\
Make pictures from the maps that 'explain --format parquet' kept. No network is
needed, only the photos.

TABLE is the folder maps.parquet, or one file of it. Files get the names that
explain would have given them.
"""

RENDER_NOTES = f"""\
example:
  gradcam-fast render maps/maps.parquet --colormap viridis --out pictures

{EXIT_STATUS}"""

LAYERS = """\
List the layers of a network that can be explained: those whose output is a map
of the image, in the order in which they finish. The star marks the one that is
taken if none is named; explain takes another with --layer NAME.
"""

LAYERS_NOTES = """\
example:
  gradcam-fast layers --model resnet18 --weights random

exit status:
  0    the layers were listed
  2    wrong options, or no such network; standard error says why
"""

VIDEO = """\
Show where a network looks in every frame of a video, as a video of the same
size and frame rate, without sound. Of a camera or a stream the newest frame is
explained, and those that come meanwhile are left out; Ctrl-C ends it.
"""

VIDEO_NOTES = """\
examples:
  gradcam-fast video street.mp4 -o street-gradcam.mp4 --target traffic
  gradcam-fast video /dev/video0 -o me.mp4

exit status:
  0    the video was explained
  2    wrong options, or a video that cannot be read; standard error says why
  130  interrupted
"""
