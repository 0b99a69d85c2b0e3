"""Pre-norm: the trunk is never normalised, each branch reads a normalised copy of it (Xiong et al. 2020, arXiv:2002.04745)."""

from suite.registry import register
from suite.residual import Residual, rms_norm


@register("prenorm", paper="arXiv:2002.04745")
class PreNorm(Residual):
    """X + F(N X), N the backbone's RMSNorm; one more N behind the last block, since the trunk grows with depth."""

    def forward(self, x_BTD, branch, ctx):
        return self.merge(x_BTD, branch(self.read(x_BTD)), ctx)

    def read(self, x_BTD):
        """What the branch reads of the trunk."""
        return rms_norm(x_BTD)

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + f_BTD

    def fold(self, x_BTD):
        return rms_norm(x_BTD)
