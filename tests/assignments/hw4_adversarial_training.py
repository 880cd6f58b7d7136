"""Mistakes in assignment 4."""

from .mistake import mistake

TRAIN_ALL = ("train-plain", "train-adversarial", "train-plan")
REPAIRS = ("repair-held", "repair-other")

MISTAKES = [
    mistake("half of the ball", "x + eps * (2 * u - 1)", "x + eps * u", "start-moments", "start-ball"),
    mistake("clipped at the start", "x + eps * (2 * u - 1)", "(x + eps * (2 * u - 1)).clamp(0, 1)", "start-ball"),
    mistake("a normal draw", "torch.rand(x.shape", "torch.randn(x.shape", "start-ball", "start-moments"),
    mistake(
        "corners only",
        "x + eps * (2 * u - 1)",
        "x + eps * (2 * u - 1).sign()",
        "start-moments",
    ),
    mistake(
        "one draw for the whole batch",
        "torch.rand(x.shape, generator",
        "torch.rand(x[:1].shape, generator",
        "start-moments",
    ),
    mistake(
        "the generator is ignored", "torch.rand(x.shape, generator=generator)", "torch.rand(x.shape)", "start-ball"
    ),
    mistake("the gradient of the clean image", "at = start.detach()", "at = x.detach()", "step-where"),
    mistake("a sign error", "(start + step)", "(start - step)", "step-linear", "step-where"),
    mistake(
        "the step from the clean image",
        "(start + step).clamp",
        "(x + step).clamp",
        "step-linear",
        "step-where",
    ),
    mistake(
        "eps in place of alpha",
        "step = alpha *",
        "step = eps *",
        "step-linear",
        "step-where",
    ),
    mistake(
        "not projected",
        "(start + step).clamp(x - eps, x + eps).clamp(0, 1)",
        "(start + step).clamp(0, 1)",
        "step-linear",
    ),
    mistake(
        "projected around the start",
        "clamp(x - eps, x + eps)",
        "clamp(start - eps, start + eps)",
        "step-linear",
        "step-where",
    ),
    mistake("the clip is forgotten", "x + eps).clamp(0, 1)", "x + eps)", "step-where"),
    mistake(
        "zero counts as positive",
        "torch.autograd.grad(loss, at)[0].sign()",
        "torch.autograd.grad(loss, at)[0].ge(0).float().mul(2).sub(1)",
        "step-where",
    ),
    mistake(
        "a backward pass through the weights",
        "step = alpha * torch.autograd.grad(loss, at)[0].sign()",
        "loss.backward()\n    step = alpha * at.grad.sign()",
        "step-images",
    ),
    mistake("the gradients add up", "    optimizer.zero_grad()\n", "", *TRAIN_ALL),
    mistake(
        "cleared between backward and step",
        "    optimizer.zero_grad()\n    loss.backward()\n",
        "    loss.backward()\n    optimizer.zero_grad()\n",
        *TRAIN_ALL,
    ),
    mistake(
        "the summed loss",
        "F.cross_entropy(network(x_adv), y)",
        'F.cross_entropy(network(x_adv), y, reduction="sum")',
        *TRAIN_ALL,
    ),
    mistake("the rate is ignored", 'group["lr"] = rate', "pass", "train-plan"),
    mistake(
        "learns from clean images",
        "update(network, optimizer, x_adv, y[rows], rate)",
        "update(network, optimizer, x[rows], y[rows], rate)",
        "train-adversarial",
        "train-plan",
    ),
    mistake("alpha in units of one", "radius, alpha * radius, start", "radius, alpha, start", "train-plan"),
    mistake("noise is ignored", "x[rows], noise * radius, generator", "x[rows], radius, generator", "train-plan"),
    mistake("left in eval mode", "    network.train()\n", "", "train-passes"),
    mistake(
        "a pass too many",
        "        update(network, optimizer, x_adv, y[rows], rate)",
        "        network(x[rows])\n        update(network, optimizer, x_adv, y[rows], rate)",
        "train-passes",
    ),
    mistake(
        "judged in train mode",
        "    network.eval()\n    x_adv = random_start",
        "    x_adv = random_start",
        "notice-ball",
    ),
    mistake(
        "PGD that is a single step",
        "for _ in range(steps):",
        "for _ in range(1):",
        "notice-bent",
        "notice-ball",
    ),
    mistake(
        "projected on the last iterate",
        "single_step(network, x, y, eps, alpha, x_adv)",
        "single_step(network, x_adv, y, eps, alpha, x_adv)",
        "notice-ball",
    ),
    mistake(
        "every step begins at the image",
        "single_step(network, x, y, eps, alpha, x_adv)",
        "single_step(network, x, y, eps, alpha, x)",
        "notice-bent",
        "notice-ball",
    ),
    mistake(
        "compared with the epoch before only",
        "pgd[max(t - 2, 0) : t]",
        "pgd[t - 1 : t]",
        "notice-true",
    ),
    mistake(
        "compared with the best of all epochs",
        "pgd[max(t - 2, 0) : t]",
        "pgd[:t]",
        "notice-false",
    ),
    mistake(
        "epochs counted from 1", "            return t\n", "            return t + 1\n", "notice-sudden", "notice-true"
    ),
    mistake(
        "FGSM is not looked at",
        "if fell and fgsm[t] - pgd[t] > gap:",
        "if fell:",
        "notice-false",
        "notice-true",
    ),
    mistake(
        "the fall is not looked at",
        "if fell and fgsm[t] - pgd[t] > gap:",
        "if fgsm[t] - pgd[t] > gap:",
        "notice-sudden",
        "notice-false",
        "notice-true",
    ),
    mistake(
        "starts with the third epoch",
        "for t in range(1, len(pgd)):",
        "for t in range(2, len(pgd)):",
        "notice-sudden",
    ),
    mistake(
        "the last collapse",
        "    for t in range(1, len(pgd)):",
        "    for t in reversed(range(1, len(pgd))):",
        "notice-sudden",
        "notice-true",
    ),
    mistake(
        "the recipe as it was",
        "0.5, generator):\n        x_adv = random_start(x[rows], radius, generator)\n        for _ in range(3):",
        "0.5, generator):\n        x_adv = x[rows]\n        for _ in range(1):",
        *REPAIRS,
    ),
    mistake(
        "more passes than there are",
        "at a higher rate.\n    epochs = budget // (4 * len(x))",
        "at a higher rate.\n    epochs = budget // (2 * len(x))",
        *REPAIRS,
    ),
    mistake(
        "robust to noise",
        "0.5, generator):\n        x_adv = random_start(x[rows], radius, generator)\n        for _ in range(3):",
        "0.5, generator):\n        x_adv = random_start(x[rows], radius, generator)\n        for _ in range(0):",
        *REPAIRS,
    ),
    mistake(
        "a small radius, for its fine accuracy",
        "plan(len(x), epochs, 0.02, eps, 0.5, generator):",
        "plan(len(x), epochs, 0.02, eps / 6, 0.5, generator):",
        *REPAIRS,
    ),
    mistake(
        "the full radius from the start",
        "plan(len(x), epochs, 0.01, eps, 0.5, generator, batch_size=25)",
        "plan(len(x), epochs, 0.01, eps, 1e-9, generator, batch_size=25)",
        "contest-held",
        "contest-score",
    ),
]
