"""Generative answers to a missing modality: a VAE of pictures and captions, in two forms.

A VAE (Kingma and Welling, ICLR 2014) has an encoder, which gives a Gaussian over a hidden vector z
(the posterior), and a decoder, which says how likely the sample is for a z. It is trained on a
lower bound of the log-likelihood, the ELBO: `E_q[log p(x|z)] - KL(q || prior)`. With several
modalities, there is a posterior for each (an expert), and the two methods differ in how they join
them:

- `MVAE` multiplies them: Wu and Goodman, "Multimodal Generative Models for Scalable
  Weakly-Supervised Learning", NeurIPS 2018;
- `MMVAE` mixes them: Shi et al., "Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
  Generative Models", NeurIPS 2019.

Ours, and not the papers': encoders and decoders; Gaussians where the second paper has Laplace
distributions; and its bound, which is not IWAE but the ELBO with one draw from each expert and the
mean of their divergences from the prior (`MMVAE.loss`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcl_core.batches import Batch, at_hand, require
from mmcl_core.data.tokenizer import SPECIALS
from mmcl_core.encoders import by_modality, width_of
from mmcl_core.errors import MMCLError, ShapeError, check_count, check_number
from mmcl_core.losses.checks import at_least_float32, in_float32
from mmcl_core.methods.method import Method, unit

# At the beginning, means are spread out and variances small, or the decoders would see little but
# noise for hundreds of steps. Ours.
SPREAD, LOG_VARIANCE = 4.0, -4.0


class Gaussian(NamedTuple):
    """Independent normal distributions, one for each number of z."""

    mean: Tensor  # [B, Z]
    log_variance: Tensor  # [B, Z]

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One z for each sample, [B, Z], through which the gradient flows."""
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + noise * (self.log_variance / 2).exp()


def product_of_experts(experts: Sequence[Gaussian]) -> Gaussian:
    """Multiplies Gaussians with each other and with the prior N(0, 1), and normalises.

    With the precision `T_m = 1 / var_m`, and 1 and a mean of 0 for the prior: `var = 1 / sum T`,
    `mean = sum(T mean) / sum T` (section 2.2 of Wu and Goodman). Who is sure has the say. No expert
    at all leaves the prior, but its shape is then unknown: at least one.

    Raises:
        MMCLError: no expert.
    """
    if not experts:
        raise MMCLError("a product of experts needs at least one; got none")
    precision = torch.stack([(-of.log_variance).exp() for of in experts])
    total = 1 + precision.sum(0)
    means = torch.stack([of.mean for of in experts])
    return Gaussian((precision * means).sum(0) / total, -total.log())


def kl_to_prior(of: Gaussian) -> Tensor:
    """`KL(q || N(0, 1))` of each sample in nats, [B], in closed form; at least 0."""
    mean, log_variance = of
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2


@in_float32
def picture_log_likelihood(decoded: Tensor, pictures: Tensor, std: float) -> Tensor:
    """`log p(picture | z)` in nats, [B]: each number of a picture normal around the decoded one.

    Args:
        decoded: [B, 3, H, W].
        pictures: float [B, 3, H, W].
        std: the standard deviation of each number, above 0.
    """
    square = (decoded - pictures).square().flatten(1)
    return -(square / (2 * std**2) + math.log(std * math.sqrt(2 * math.pi))).sum(1)


def words_there(captions: Tensor, vocabulary: int) -> Tensor:
    """Which words a caption holds: float [B, V - 4] of 0 and 1, specials left out.

    Args:
        captions: int64 [B, L], 0 is padding.
        vocabulary: number V of word numbers.
    """
    there = captions.new_zeros(len(captions), vocabulary, dtype=torch.float32)
    return there.scatter_(1, captions, 1.0)[:, len(SPECIALS) :]


@in_float32
def words_log_likelihood(logits: Tensor, there: Tensor) -> Tensor:
    """`log p(caption | z)` in nats, [B]: each word of the vocabulary is there or not, by itself.

    Args:
        logits: [B, V - 4], of each word being there.
        there: [B, V - 4], see `words_there`.
    """
    return -F.binary_cross_entropy_with_logits(logits, there.to(logits), reduction="none").sum(1)


class PictureDecoder(nn.Module):
    """A hidden vector to a picture: one linear map, then convolutions that double the side thrice.

    Args:
        dim: width Z of the hidden vector.
        size: side of the pictures, a multiple of 8.
        width: channels at the coarsest grid, a multiple of 32.
    """

    def __init__(self, dim: int, *, size: int = 32, width: int = 64) -> None:
        super().__init__()
        dim = check_count("dim", dim)
        size, width = check_count("size", size), check_count("width", width)
        if size % 8 or width % 32:
            raise MMCLError(
                "expected a size that is a multiple of 8 and a width that is one of 32; got "
                f"size={size}, width={width}"
            )
        self.side, self.width = size // 8, width
        self.grid = nn.Linear(dim, width * self.side**2)
        self.convolutions = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.GroupNorm(8, width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 4, stride=2, padding=1),
            nn.GroupNorm(8, width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, 3, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """[B, Z] -> pictures [B, 3, size, size] in (0, 1)."""
        flat = self.grid(z.to(self.grid.weight.dtype))
        grid = flat.view(len(z), self.width, self.side, self.side)
        return self.convolutions(grid).sigmoid()


class WordsDecoder(nn.Linear):
    """A hidden vector to the words of a caption, without their order: logits [B, V - 4].

    A bag of words, and not one word a place: a decoder that writes a sentence word by word can read
    most of the next word from the last ones, and then learns to do without z (Bowman et al., 2016).
    The price: it never says which colour belongs to which shape.

    Args:
        dim: width Z of the hidden vector.
        vocabulary: number V of word numbers.
    """

    def __init__(self, dim: int, vocabulary: int) -> None:
        words = check_count("vocabulary", vocabulary, least=len(SPECIALS) + 1) - len(SPECIALS)
        super().__init__(check_count("dim", dim), words)

    def forward(self, z: Tensor) -> Tensor:
        """[B, Z] -> [B, V - 4]."""
        return super().forward(z.to(self.weight.dtype))


class MultimodalVAE(Method):
    """What the two methods share: an expert and a decoder for each modality.

    Args:
        image_encoder: returns `Encoded` for `batch["image"]`; has a `width` and a `size`.
        caption_encoder: returns `Encoded` for `batch["caption"]`; has a `width` and a `vocabulary`.
        dim: width Z of the hidden vector, and of the embeddings.
        pixel_std: standard deviation of a number of a picture around the decoded one, at least
            1e-6.
        caption_weight: what `log p(caption | z)` is multiplied by, above 0. A picture has thousands
            of numbers and a caption a few words; with 1, nearly all of the gradient is the
            picture's. With another weight, the bound is no longer one of the likelihood.
    """

    modalities = ("image", "caption")
    # Typed here, since a ModuleDict forgets what it holds.
    encoders: Any
    posteriors: Any
    decoders: Any

    def __init__(
        self,
        image_encoder: nn.Module,
        caption_encoder: nn.Module,
        *,
        dim: int = 128,
        pixel_std: float = 0.25,
        caption_weight: float = 50.0,
    ) -> None:
        super().__init__()
        dim = check_count("dim", dim)
        self.pixel_std = check_number("pixel_std", pixel_std, "[1e-6, inf)")
        self.caption_weight = check_number("caption_weight", caption_weight, "(0, inf)")
        self.encoders = by_modality({"image": image_encoder, "caption": caption_encoder})
        size, vocabulary = (
            getattr(encoder, name, None)
            for encoder, name in ((image_encoder, "size"), (caption_encoder, "vocabulary"))
        )
        if not isinstance(size, int) or not isinstance(vocabulary, int):
            raise MMCLError(
                "a decoder needs to know what to draw: expected an image encoder with a `size` and "
                f"a caption encoder with a `vocabulary`; got {size} and {vocabulary}"
            )
        self.vocabulary = vocabulary
        self.posteriors = nn.ModuleDict(
            {m: nn.Linear(width_of(e), 2 * dim) for m, e in self.encoders.items()}
        )
        with torch.no_grad():
            for posterior in self.posteriors.values():
                posterior.weight[:dim] *= SPREAD
                posterior.bias[dim:] = LOG_VARIANCE
        self.decoders = nn.ModuleDict(
            {"image": PictureDecoder(dim, size=size), "caption": WordsDecoder(dim, vocabulary)}
        )

    def expert(self, batch: Batch, modality: str) -> Gaussian:
        """The posterior of one modality by itself.

        Raises:
            MissingModalityError: it is neither image nor caption, or not in the batch.
        """
        both = self.posteriors[modality](self._encode(batch, modality).pooled)  # [B, 2 Z]
        return Gaussian(*at_least_float32(both).chunk(2, dim=1))

    def posterior_mean(self, batch: Batch) -> Tensor:
        """[B, Z]: where the posterior of the modalities at hand has its mean.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        raise NotImplementedError

    def embed(self, batch: Batch) -> Tensor:
        """[B, Z]: the posterior mean, brought to unit norm.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        return unit(self.posterior_mean(batch))

    def decode(self, z: Tensor, modality: str) -> Tensor:
        """What a hidden vector looks or reads like.

        Args:
            z: [B, Z].
            modality: "image" gives pictures [B, 3, H, W] in (0, 1); "caption" the probability of
                each word to be there, [B, V], 0 for specials.

        Raises:
            MissingModalityError: another modality.
            ShapeError: z has another width.
        """
        self._check_known(modality)
        dim = self.decoders["caption"].in_features
        if z.ndim != 2 or z.shape[1] != dim:
            raise ShapeError(f"expected hidden vectors [B, {dim}], got {list(z.shape)}")
        if modality == "image":
            return self.decoders["image"](z)
        return F.pad(self.decoders["caption"](z).sigmoid(), (len(SPECIALS), 0))

    def reconstruct(self, batch: Batch, modality: str) -> Tensor:
        """A modality, from the posterior mean of whatever is at hand; see `decode`.

        Raises:
            MissingModalityError: another modality, or nothing is at hand.
        """
        return self.decode(self.posterior_mean(batch), modality)

    def _likelihoods(self, z: Tensor, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """`log p(x_m | z)` of each of the names, [B] each, without weights."""
        found = {}
        if "image" in names:
            found["image"] = picture_log_likelihood(
                self.decoders["image"](z), batch["image"], self.pixel_std
            )
        if "caption" in names:
            there = words_there(batch["caption"], self.vocabulary)
            found["caption"] = words_log_likelihood(self.decoders["caption"](z), there)
        return found

    def _elbo(self, of: Gaussian, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Batch]:
        """The weighted ELBO of these modalities, [B], with one draw of z; and its parts."""
        parts = self._likelihoods(of.draw(), batch, names) | {"kl": kl_to_prior(of)}
        weights = {"image": 1.0, "caption": self.caption_weight}
        seen = torch.stack([weights[name] * parts[name] for name in names]).sum(0)
        return seen - parts["kl"], parts


class MVAE(MultimodalVAE):
    """A VAE whose experts are multiplied, the prior among them (Wu and Goodman, NeurIPS 2018).

    See `MultimodalVAE` for the arguments. A missing modality is an expert that is left out.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The negative sum of three ELBOs: of both modalities, and of each by itself.

        Without the last two, an expert would never learn to speak alone (section 2.2 of the paper:
        with two modalities, its sub-sampled training is this sum). In those two, only the modality
        at hand is decoded. Nothing in this loss asks for a picture of a caption: that is left to
        what the hidden vector means to both.

        Returns:
            "total"; and of the ELBO of both, in nats a sample, "image" and "caption"
            (`log p(x | z)`, no weights) and "kl".

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "MVAE trains on", *self.modalities)
        experts = {m: self.expert(batch, m) for m in self.modalities}
        both, parts = self._elbo(product_of_experts(list(experts.values())), batch, self.modalities)
        alone = [self._elbo(product_of_experts([of]), batch, (m,))[0] for m, of in experts.items()]
        return {"total": -(both + alone[0] + alone[1]).mean()} | _means(parts)

    def posterior(self, batch: Batch) -> Gaussian:
        """The product of the experts at hand and the prior.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        present = at_hand(batch, "MVAE reads", self.modalities)
        return product_of_experts([self.expert(batch, m) for m in present])

    def posterior_mean(self, batch: Batch) -> Tensor:
        """[B, Z]: the mean of `posterior`; raises as it does."""
        return self.posterior(batch).mean


class MMVAE(MultimodalVAE):
    """A VAE whose experts are mixed, each with the same share (Shi et al., NeurIPS 2019).

    See `MultimodalVAE` for the arguments. A missing modality is an expert that is left out.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The negative mean over the experts of an ELBO in which each decodes *both* modalities.

        Of an expert m, `E_{q_m}[log p(image | z) + log p(caption | z)] - KL(q_m || prior)`, with
        one z drawn from each (stratified). Since the divergence of a mixture is at most the mean
        of those of its parts, the mean over m is a lower bound too, though a looser one than with
        the density of the mixture itself, and than IWAE, which the paper prefers.

        Returns:
            "total"; and means over the experts, in nats a sample, "image" and "caption"
            (`log p(x | z)`, no weights) and "kl".

        Raises:
            MissingModalityError: one of the two is not there.
        """
        require(batch, "MMVAE trains on", *self.modalities)
        found = [self._elbo(self.expert(batch, m), batch, self.modalities) for m in self.modalities]
        elbo = torch.stack([each for each, _ in found]).mean(0)
        parts = {name: torch.stack([of[name] for _, of in found]).mean(0) for name in found[0][1]}
        return {"total": -elbo.mean()} | _means(parts)

    def posterior_mean(self, batch: Batch) -> Tensor:
        """[B, Z]: the mean of the mixture of the experts at hand, which is the mean of their means.

        Raises:
            MissingModalityError: neither picture nor caption is there.
        """
        present = at_hand(batch, "MMVAE reads", self.modalities)
        return torch.stack([self.expert(batch, m).mean for m in present]).mean(0)


def _means(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in parts.items()}
