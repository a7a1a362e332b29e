"""Knowledge distillation: a small net learns what a wider one, trained before it, makes of the training images."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinymnist.augmentation import augment
from tinymnist.recipe import Recipe

VIEWS = 8  # augmented copies of each image that the teacher is asked about


@torch.no_grad()
def soft_labels(
    teacher: nn.Module, images: Tensor, recipe: Recipe, views: int = VIEWS, batch_size: int = 250
) -> Tensor:
    """What a trained net makes of each image: its probabilities, averaged over augmented copies.

    They are computed once for a training and hold for every copy of an image, so that a large teacher costs the
    training steps nothing (Bagherinezhad et al., "Label Refinery", 2018). The teacher has learnt the plain images
    too well to doubt them, hence the copies. They are drawn from a fixed random seed.

    Args:
        teacher: a trained net on the images' device; a copy of it is asked, in evaluation mode.
        images: uint8 (N, 28, 28).
        recipe: says how the copies are augmented, and at which temperature probabilities are taken.
        views: copies of each image.
        batch_size: images per forward pass.

    Returns:
        float32 (N, 10), each row adds up to 1.
    """
    generator = torch.Generator(images.device).manual_seed(0)
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with one layout in memory and one thread, the same bits come out everywhere
    try:
        soft = []
        for batch in images.split(batch_size):
            copies = (augment(batch, recipe, generator) for _ in range(views))
            soft.append(sum((teacher(x) / recipe.temperature).softmax(1) for x in copies) / views)
    finally:
        torch.set_num_threads(threads)
    return torch.cat(soft)


def distillation_loss(hard: Tensor, logits: Tensor, soft: Tensor, recipe: Recipe) -> Tensor:
    """The loss about the labels and, by the recipe's share, about a teacher's soft labels (Hinton et al., 2015).

    Args:
        hard: the mean cross-entropy with the labels.
        logits: float (B, 10).
        soft: float (B, 10), the teacher's probabilities at the recipe's temperature T. Their term is multiplied
            by T squared, so that its gradient does not shrink with T.

    Returns:
        the mean over the batch.
    """
    share, temperature = recipe.distillation, recipe.temperature
    return (1 - share) * hard + share * temperature**2 * F.cross_entropy(logits / temperature, soft)
