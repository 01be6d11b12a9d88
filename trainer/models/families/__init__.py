"""The kinds of Stable Diffusion that can be trained, one module each; an SD 1.5 job imports no other's."""
