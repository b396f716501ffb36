"""One question about every picture of a folder; the masks as COCO JSON (compressed RLE), for pycocotools.

python examples/folder_to_coco.py [BUNDLE] [FOLDER] [QUESTION] [OUT.json]
"""

import json
import sys
from pathlib import Path

import pixelrt

here = Path(__file__).resolve().parents[1]
given = dict(enumerate(sys.argv))
seg = pixelrt.load(given.get(1, here / "bundles" / "pixellm-tiny"))
pictures = sorted(Path(given.get(2, here / "calib_data")).glob("*.png"))
question = given.get(3, "Segment the striped shapes.")
out = Path(given.get(4, "coco.json"))

images, annotations, categories = [], [], {}
for picture in pictures:
    frame = seg.encode(picture)
    height, width = frame.image.shape[:2]
    images.append({"id": len(images) + 1, "file_name": picture.name, "height": height, "width": width})
    for mask in seg.segment(frame, question).masks:
        if mask.box is None:  # empty
            continue
        x0, y0, x1, y1 = mask.box
        category = categories.setdefault(mask.label or "object", len(categories) + 1)
        annotation = {"id": len(annotations) + 1, "image_id": len(images), "category_id": category}
        annotation |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": mask.area, "score": mask.score}
        annotations.append(annotation | {"segmentation": mask.rle(), "iscrowd": 0})

names = [{"id": number, "name": name} for name, number in categories.items()]
out.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
print(f"wrote {out}: {len(annotations)} masks in {len(images)} pictures")
