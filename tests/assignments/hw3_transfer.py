"""Mistakes in assignment 3."""

from .mistake import mistake

GATHER = "decay * m + normalised(gradient(x_adv, k))"
STEP = "x_adv.clamp(x - eps, x + eps).clamp(0, 1)"
COIN = "if torch.rand((), generator=generator) >= p:"
THROUGH = "x = x.detach().requires_grad_()\n    logits = model(diverse(x, least, p, generator))"
OUTER = """        return diverse_gradient(model, at, y, least, p, generator)

    return mi_fgsm(gradient, x, eps, steps, step_size)"""

MISTAKES = [
    mistake(
        "the mean in place of the sum",
        ".abs().sum(1).view(",
        ".abs().mean(1).view(",
        "momentum-normalised",
    ),
    mistake("zero over zero", "torch.where(size > 0, g / size, 0)", "g / size", "momentum-normalised"),
    mistake(
        "one norm for the whole batch",
        "g.flatten(1).abs().sum(1).view(-1, *[1] * (g.ndim - 1))",
        "g.abs().sum()",
        "momentum-normalised",
        "momentum-memory",
    ),
    mistake("raw gradients are gathered", GATHER, "decay * m + gradient(x_adv, k)", "momentum-memory"),
    mistake(
        "normalised after gathering",
        GATHER,
        "normalised(decay * m + gradient(x_adv, k))",
        "momentum-memory",
    ),
    mistake(
        "the step is along the gradient, whatever is gathered",
        GATHER,
        "0 * decay + normalised(gradient(x_adv, k))",
        "momentum-memory",
    ),
    mistake(
        "decay weighs the new gradient",
        GATHER,
        "m + decay * normalised(gradient(x_adv, k))",
        "momentum-plain",
    ),
    mistake(
        "a running mean",
        GATHER,
        "decay * m + (1 - decay) * normalised(gradient(x_adv, k))",
        "momentum-memory",
        "momentum-ball",
    ),
    mistake(
        "the gradient of the clean image in every step",
        "gradient(x_adv, k)",
        "gradient(x, k)",
        "momentum-plain",
        "momentum-memory",
    ),
    mistake("steps are counted from 1", "gradient(x_adv, k)", "gradient(x_adv, k + 1)", "momentum-memory"),
    mistake(
        "projected on the last iterate",
        "x_adv = x_adv + step_size * m.sign()\n        " + f"x_adv = {STEP}",
        "x = x_adv\n        x_adv = x_adv + step_size * m.sign()\n        " + f"x_adv = {STEP}",
        "momentum-plain",
        "momentum-ball",
    ),
    mistake("the clip is forgotten", STEP, "x_adv.clamp(x - eps, x + eps)", "momentum-plain", "momentum-ball"),
    mistake(
        "the coin is upside down",
        COIN,
        "if torch.rand((), generator=generator) < p:",
        "diversity-repeats",
        "diversity-chance",
        "diversity-gradient",
    ),
    mistake(
        "there is no coin",
        COIN,
        "if p < 0:",
        "diversity-repeats",
        "diversity-chance",
        "diversity-gradient",
    ),
    mistake(
        "global randomness",
        "torch.randint(low, high + 1, (), generator=generator)",
        "torch.randint(low, high + 1, ())",
        "diversity-repeats",
        "diversity-gradient",
    ),
    mistake(
        "the largest side never occurs",
        "draw(least, x.shape[-1])",
        "draw(least, x.shape[-1] - 1)",
        "diversity-chance",
    ),
    mistake(
        "always in the middle",
        "top, left = draw(0, room), draw(0, room)",
        "top = left = room // 2",
        "diversity-chance",
    ),
    mistake(
        "always on the diagonal",
        "top, left = draw(0, room), draw(0, room)",
        "top = left = draw(0, room)",
        "diversity-chance",
    ),
    mistake(
        "cut, not resized",
        'F.interpolate(x, size=(side, side), mode="nearest")',
        "x[..., :side, :side]",
        "diversity-picture",
    ),
    mistake(
        "padded in the wrong order",
        "(left, room - left, top, room - top)",
        "(left, top, room - left, room - top)",
        "diversity-repeats",
        "diversity-picture",
        "diversity-gradient",
    ),
    mistake(
        "every image has its own draw",
        COIN,
        f"if len(x) > 1:\n        return torch.cat([diverse(row[None], least, p, generator) for row in x])\n    {COIN}",
        "diversity-picture",
    ),
    mistake(
        "not pulled back through the transformation",
        THROUGH,
        "x = diverse(x, least, p, generator).detach().requires_grad_()\n    logits = model(x)",
        "diversity-gradient",
    ),
    mistake("the loss is averaged", 'reduction="sum"', 'reduction="mean"', "diversity-gradient"),
    mistake(
        "the slope of the loss, which an attack would have to descend",
        "F.one_hot(t, logits.shape[1]) - logits.softmax(1)",
        "logits.softmax(1) - F.one_hot(t, logits.shape[1])",
        "targeted-slopes",
        "targeted-saturated",
    ),
    mistake(
        "softmax over the images",
        "logits.softmax(1)",
        "logits.softmax(0)",
        "targeted-slopes",
        "targeted-saturated",
    ),
    mistake(
        "exponentials overflow",
        "logits.softmax(1)",
        "logits.exp() / logits.exp().sum(1, keepdim=True)",
        "targeted-saturated",
    ),
    mistake(
        "the slope of p_t for that of z_t",
        "F.one_hot(t, logits.shape[1]).to(logits)",
        "F.one_hot(t, logits.shape[1]) * logits.softmax(1)",
        "targeted-slopes",
        "targeted-saturated",
    ),
    mistake(
        "the slope is averaged",
        "slope(logits.detach(), t))[0]",
        "slope(logits.detach(), t) / len(x))[0]",
        "targeted-chain",
    ),
    mistake(
        "the slope is asked for at probabilities",
        "slope(logits.detach(), t)",
        "slope(logits.detach().softmax(1), t)",
        "targeted-chain",
    ),
    mistake("away from the target", "return pull_back(", "return -pull_back(", "targeted-reaches"),
    mistake("the clean image's gradient again", "pull_back(model, at,", "pull_back(model, x,", "targeted-reaches"),
    mistake(
        "it stops when all have got there",
        "t, slope)\n\n    return mi_fgsm(gradient, x, eps, steps, step_size)",
        """t, slope)

    for k in range(steps):
        x_adv = mi_fgsm(gradient, x, eps, k + 1, step_size)
        if (model(x_adv).argmax(1) == t).all():
            break
    return x_adv""",
        "targeted-reaches",
    ),
    mistake(
        "the inner loop climbs",
        "(near - step).clamp",
        "(near + step).clamp",
        "rap-neighbour",
        "rap-start",
        "rap-where",
    ),
    mistake("the inner loop starts at the iterate", "(x + noise).clamp(low, high)", "x", "rap-start"),
    mistake("one start for all images", "torch.empty_like(x)", "torch.empty_like(x[:1])", "rap-start"),
    mistake(
        "the neighbour gets too far",
        "(near - step).clamp(low, high)",
        "(near - step).clamp(0, 1)",
        "rap-neighbour",
        "rap-start",
        "rap-where",
    ),
    mistake(
        "the neighbour is no image",
        "(x - eps_n).clamp(min=0), (x + eps_n).clamp(max=1)",
        "x - eps_n, x + eps_n",
        "rap-neighbour",
        "rap-start",
        "rap-where",
    ),
    mistake("steps of eps_n", "eps_n / inner *", "eps_n *", "rap-start", "rap-where"),
    mistake("the gradient of the iterate", "at = worst_neighbour(", "worst_neighbour(", "rap-where"),
    mistake(
        "the neighbour stays in the result",
        OUTER,
        """        return at, diverse_gradient(model, at, y, least, p, generator)

    x_adv, m = x, torch.zeros_like(x)
    for k in range(steps):
        x_adv, g = gradient(x_adv, k)
        m = m + normalised(g)
        x_adv = (x_adv + step_size * m.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv""",
        "rap-where",
    ),
    mistake("a step too late", "if k >= late:", "if k > late:", "rap-passes", "rap-where"),
    mistake("never late", "if k >= late:", "if True:", "rap-equals", "rap-passes", "rap-where"),
    mistake(
        "the inner loop is diverse",
        "at = worst_neighbour(model, at,",
        "at = worst_neighbour(lambda z: model(diverse(z, least, p, generator)), at,",
        "rap-where",
    ),
    mistake(
        "nothing is diverse",
        "return diverse_gradient(model, at, y, least, p, generator)",
        "return input_gradient(model, at, y)",
        "rap-where",
    ),
    mistake(
        "the weaker surrogate alone",
        "models.Ensemble(surrogates)",
        "surrogates[0]",
        "contest-seen",
        "contest-hidden",
        "contest-better",
    ),
    mistake(
        "no momentum, and half of the steps",
        "steps=20, step_size=eps / 10",
        "steps=10, step_size=eps / 10, decay=0.0",
        "contest-seen",
        "contest-hidden",
        "contest-better",
    ),
    mistake(
        "one long step",
        "steps=20, step_size=eps / 10",
        "steps=1, step_size=eps",
        "contest-seen",
        "contest-hidden",
        "contest-better",
    ),
    mistake(
        "more passes than allowed",
        "steps=20, step_size=eps / 10",
        "steps=41, step_size=eps / 10",
        "contest-seen",
        "contest-hidden",
        "contest-better",
    ),
    mistake(
        "not in the ball",
        "return mi_fgsm(gradient, x, eps, steps=20",
        "return mi_fgsm(gradient, x, 2 * eps, steps=20",
        "contest-seen",
        "contest-hidden",
        "contest-better",
    ),
]
