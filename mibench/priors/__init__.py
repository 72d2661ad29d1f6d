"""Image priors, one a file: how an attacker's idea of 'an image of this kind' is learnt on public data."""
