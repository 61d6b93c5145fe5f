"""Denoising: diffusion, score SDEs, flow matching and rectified flow as one design space."""
