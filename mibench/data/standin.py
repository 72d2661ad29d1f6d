"""Small trees of files in the true formats of the published data sets, to rehearse with and to test.

Names, layouts, text lists, MATLAB files and picture sizes are the published ones, counts are small, and a marker
(`published.needs.MARKER`) in each tree says so: what is prepared from it is a stand-in, in its card and its identity.
A picture is a smooth pattern of its person with a smaller one of its own, so that a classifier has something to learn.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mibench.data.published.needs import MARKER
from mibench.runtime.errors import unknown
from mibench.runtime.rng import seed_of

__all__ = ["WRITERS", "picture", "write"]


def picture(person: object, number: int, width: int, height: int) -> Image.Image:
    """The same for the same arguments: .75 of the person's pattern and .25 of the picture's own."""
    own = np.random.default_rng(seed_of("standin", str(person))).integers(0, 256, (6, 6, 3))
    one = np.random.default_rng(seed_of("standin", str(person), number)).integers(0, 256, (6, 6, 3))
    small = Image.fromarray((0.75 * own + 0.25 * one).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR)


def write(name: str, root: Path, crowd: bool = False) -> Path:
    """Write one data set's tree below `root`.

    Args:
        name: celeba, facescrub, stanford_dogs, pubfig83, vggface2, ffhq, metfaces or afhq.
        root: Folder of all data sets.
        crowd: Of data that have people for a verifier, as many people as one takes, with few pictures each; of others
            few pictures of few people. For rehearsals, whose networks look at every picture.

    Returns:
        The data set's folder.

    Raises:
        UserError: There is no stand-in of this name.
    """
    if name not in WRITERS:
        raise unknown("stand-in", name, WRITERS)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    counts = WRITERS[name](home, crowd)
    (home / MARKER).write_text(json.dumps({"by": "mibench", "counts": counts}, indent=1) + "\n", encoding="utf-8")
    return home


def _save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def _celeba(home: Path, crowd: bool) -> Mapping[str, int]:
    """8 people with 20 pictures, of whom each split has 6 private ones and both 4; 14 with 6, of whom 6 are public.

    A crowd: 22 with 4, of whom each split has 20; 34 with 2, of whom 6 are public.
    """
    many, private_pictures, others, pictures = (22, 4, 34, 2) if crowd else (8, 20, 14, 6)
    frequent, rare = [11 * n for n in range(1, many + 1)], [1000 + 7 * n for n in range(others)]
    # Interleaved as in the authors' file, where people are in no order.
    turns = range(private_pictures)
    people = [person for turn in turns for person in (*frequent, *(rare if turn < pictures else ()))]
    names = [f"{number:06d}" for number in range(1, len(people) + 1)]
    lines = [f"{name}.jpg {person}\n" for name, person in zip(names, people, strict=True)]
    (home / "identity_CelebA.txt").write_text("".join(lines))
    (home / "list_eval_partition.txt").write_text("".join(f"{name}.jpg {n % 3}\n" for n, name in enumerate(names)))
    rng = np.random.default_rng(0)
    standard = rng.normal(0, 0.22, (68, 2))
    (home / "standard_landmark_68pts.txt").write_text("".join(f"{x:.6f} {y:.6f}\n" for x, y in standard))
    landmarks = []
    with zipfile.ZipFile(home / "img_align_celeba.zip", "w") as archive:
        for n, (name, person) in enumerate(zip(names, people, strict=True)):
            buffer = io.BytesIO()
            picture(person, n, 178, 218).save(buffer, "JPEG", quality=95)
            archive.writestr(f"img_align_celeba/{name}.jpg", buffer.getvalue())
            _save(picture(person, n, 200, 260), home / "img_celeba" / f"{name}.jpg")
            points = standard * 90 + (100, 120) + rng.normal(0, 1, (68, 2))
            landmarks.append(f"{name}.jpg " + " ".join(f"{value:.1f}" for value in points.reshape(-1)) + "\n")
    (home / "landmark.txt").write_text("".join(landmarks))
    private, public = frequent[2:], rare[:6]
    rows: dict[str, list[str]] = {"celeba_trainset": [], "celeba_testset": [], "celeba_ganset": []}
    seen: dict[int, int] = {}
    for name, person in zip(names, people, strict=True):
        seen[person] = seen.get(person, 0) + 1
        if person in private:
            kind = "celeba_trainset" if seen[person] <= private_pictures - 2 else "celeba_testset"
            rows[kind].append(f"{name}.jpg {private.index(person)}\n")
        elif person in public:
            rows["celeba_ganset"].append(f"{name}.jpg\n")
    for kind, own in rows.items():
        (home / f"{kind}.txt").write_text("".join(own))
    return {
        "images": len(names),
        "identities": len(frequent) + len(rare),
        "classes": len(private),
        "kedmi_train": len(rows["celeba_trainset"]),
        "kedmi_heldout": len(rows["celeba_testset"]),
        "kedmi_public": len(rows["celeba_ganset"]),
        "ppa_private": len(private) * private_pictures,
        "enough": pictures,
        "others": 20 if crowd else 3,
    }


def _facescrub(home: Path, crowd: bool) -> Mapping[str, int]:
    """3 actors and 3 actresses with 20 pictures each: cut-out faces, whole pictures with a box, the authors' lists.

    A crowd: 2 and 2 with 5.
    """
    count, pictures = (2, 5) if crowd else (3, 20)
    people = {"actors": ("Al Pacino", "Ben Ames", "Cary Grant"), "actresses": ("Ada Wong", "Bette Dee", "Cher Ray")}
    image = 0
    for group, names in people.items():
        lines = ["name\timage_id\tface_id\turl\tbbox\tsha256\n"]
        for name in names[:count]:
            for number in range(pictures):
                image += 1
                face = picture(name, number, 90, 90)
                whole = Image.new("RGB", (160, 140), "grey")
                whole.paste(face, (40, 30))
                stem = f"{name.replace(' ', '_')}_{image}_{image + 1000}"
                _save(face, home / group / "faces" / name.replace(" ", "_") / f"{stem}.jpeg")
                _save(whole, home / group / "images" / name.replace(" ", "_") / f"{stem}.png")
                url = f"http://example.org/{image}.jpg"
                lines.append(f"{name}\t{image}\t{image + 1000}\t{url}\t40,30,130,120\t{image:064x}\n")
        (home / f"facescrub_{group}.txt").write_text("".join(lines))
    return {"actors": count, "actresses": count}


def _stanford_dogs(home: Path, crowd: bool) -> Mapping[str, int]:
    """5 breeds with 16 pictures, each with one box; the two lists as MATLAB cells. A crowd: 3 breeds.

    Of fewer pictures the tenth that is held out would not be one of each breed.
    """
    import scipy.io  # slow to import

    breeds = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog", "n02086079-Pekinese"]
    breeds.append("n02086240-Shih-Tzu")
    breeds = breeds[:3] if crowd else breeds
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, breed in enumerate(breeds, 1):
        for number in range(16):
            name = f"{breed.split('-')[0]}_{100 + number}"
            _save(picture(breed, number, 120 + number, 100), home / "Images" / breed / f"{name}.jpg")
            place = home / "Annotation" / breed / name
            place.parent.mkdir(parents=True, exist_ok=True)
            box = "".join(f"<{k}>{v}</{k}>" for k, v in (("xmin", 10), ("ymin", 5), ("xmax", 90), ("ymax", 85)))
            place.write_text(
                f"<annotation><object><name>{breed}</name><bndbox>{box}</bndbox></object>"
                "<object><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
            )
            lists["train" if number < 10 else "test"].append((f"{breed}/{name}", label))
    for kind, rows in lists.items():
        cells = {key: np.empty((len(rows), 1), object) for key in ("file_list", "annotation_list")}
        for row, (name, _) in enumerate(rows):
            cells["annotation_list"][row, 0] = name
            cells["file_list"][row, 0] = f"{name}.jpg"
        labels = np.array([[label] for _, label in rows], np.uint8)
        scipy.io.savemat(home / f"{kind}_list.mat", {**cells, "labels": labels})
    return {"pictures": 16 * len(breeds), "classes": len(breeds)}


def _people(top: Path, names: list[str], count: int, side: int) -> None:
    for name in names:
        for number in range(count):
            _save(picture(name, number, side, side), top / name / f"{number:04d}_01.jpg")


def _pubfig83(home: Path, crowd: bool) -> Mapping[str, int]:
    """8 people with 16 pictures each; a crowd has 6."""
    _people(home, [f"Person_{letter}" for letter in "ABCDEFGH"], 6 if crowd else 16, 100)
    (home / "private.txt").write_text("".join(f"Person_{letter}\n" for letter in "BDEFH"))
    return {"people": 8}


def _vggface2(home: Path, crowd: bool) -> Mapping[str, int]:
    """5 people with 20 photographs and 9 with 6; a crowd: 20 with 4 and 36 with 2. No photograph shows a face."""
    private, pictures, others, fewer = (20, 4, 36, 2) if crowd else (5, 20, 9, 6)
    _people(home / "train", [f"n{number:06d}" for number in range(2, 2 + private)], pictures, 120)
    _people(home / "train", [f"n{number:06d}" for number in range(2 + private, 2 + private + others)], fewer, 120)
    return {"people": private + others, "private": private, "others": 20 if crowd else others // 3}


def _ffhq(home: Path, crowd: bool) -> Mapping[str, int]:
    """8 pictures, as thumbnails and in full."""
    for number in range(8):
        for folder, side in (("thumbnails128x128", 128), ("images1024x1024", 1024)):
            file = home / folder / f"{number // 4 * 1000:05d}" / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture("ffhq", number, side, side).save(file, compress_level=1)
    return {"pictures": 8}


def _metfaces(home: Path, crowd: bool) -> Mapping[str, int]:
    """4 pictures."""
    (home / "images").mkdir(exist_ok=True)
    for number in range(4):
        picture("metfaces", number, 1024, 1024).save(home / "images" / f"{number:05d}-00.png", compress_level=1)
    return {"pictures": 4}


def _afhq(home: Path, crowd: bool) -> Mapping[str, int]:
    """24 pictures; a crowd has 8."""
    count = 8 if crowd else 24
    for number in range(count):
        _save(picture("afhq", number, 512, 512), home / "train" / "dog" / f"flickr_dog_{number:06d}.jpg")
    return {"pictures": count}


WRITERS: Mapping[str, Callable[[Path, bool], Mapping[str, int]]] = {
    "celeba": _celeba,
    "facescrub": _facescrub,
    "stanford_dogs": _stanford_dogs,
    "pubfig83": _pubfig83,
    "vggface2": _vggface2,
    "ffhq": _ffhq,
    "metfaces": _metfaces,
    "afhq": _afhq,
}
"""What writes each, and tells its counts."""
