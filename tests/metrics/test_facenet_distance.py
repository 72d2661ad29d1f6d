"""FaceNet distance: the recogniser's own scale, unit vectors, the nearest image of the label."""

from pathlib import Path

import torch
from facenet_pytorch import InceptionResnetV1, fixed_image_standardization
from features import brute_force, uniform

from mibench.metrics import facenet_distance


def test_facenet_gets_its_own_scale_and_distances_lie_between_unit_vectors(trusting: Path) -> None:
    model = facenet_distance.load()
    assert isinstance(model, facenet_distance.FaceNet)
    images, real = uniform(3, 3, 160, 160), uniform(4, 3, 160, 160, seed=1)
    images[1:] *= 0.3
    y, z = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 0])
    path = trusting / "checkpoints" / facenet_distance.WEIGHTS.names[0]
    state = torch.load(path, weights_only=True)
    plain = InceptionResnetV1()
    plain.load_state_dict({k: v for k, v in state.items() if "logits" not in k}, strict=False)
    plain.eval()
    with torch.no_grad():
        e, r = plain(fixed_image_standardization(images * 255)), plain(fixed_image_standardization(real * 255))
        unscaled = plain(images)
    distance = facenet_distance.facenet_distance(model, images, y, real, z)
    torch.testing.assert_close(distance, brute_force(e.double(), y, r.double(), z), rtol=1e-4, atol=1e-6)
    cosine = (e @ r.T)[y[:, None] == z].reshape(3, 2).max(dim=1).values.double()
    torch.testing.assert_close(distance, 2 * (1 - cosine), rtol=1e-3, atol=1e-5)
    assert float((e - unscaled).abs().max()) > 0.01
    assert float(facenet_distance.facenet_distance(model, images, y, images, y).abs().max()) < 1e-9
    batched = facenet_distance.facenet_distance(model, images, y, real, z, batch=2)
    torch.testing.assert_close(batched, distance, rtol=1e-3, atol=1e-6)
