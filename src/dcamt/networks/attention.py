"""Cross-attention between the bottlenecks of two branches (DCA-MT section 3.2 and 3.4)."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries ``(B, N, D)`` over a context ``(B, M, D)``.

    ``heads`` x ``head_size`` need not equal D. With D = 256 it has 263,168 parameters at 8 x 32
    and 131,712 at 4 x 32.
    """

    def __init__(self, features: int, heads: int, head_size: int):
        super().__init__()
        inner = heads * head_size
        self.heads = heads
        self.query = nn.Linear(features, inner)
        self.key = nn.Linear(features, inner)
        self.value = nn.Linear(features, inner)
        self.out = nn.Linear(inner, features)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(tokens)), split(self.key(context)), split(self.value(context))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Each branch queries the other and adds what it finds to its own features.

    ``shared`` uses one attention for both directions (paper section 3.2: 8 heads x 32), otherwise
    each direction has its own (section 3.4: 4 heads x 32). Either adds about 0.26 M parameters.
    ``f_T + A(LN(f_T), LN(f_S))`` and the reverse; shapes ``(B, D, x, y, z)``.
    """

    def __init__(self, features: int, heads: int, head_size: int, shared: bool):
        super().__init__()
        self.norm_teacher = nn.LayerNorm(features)
        self.norm_student = nn.LayerNorm(features)
        self.to_teacher = Attention(features, heads, head_size)
        self.to_student = self.to_teacher if shared else Attention(features, heads, head_size)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Exchanged features of both branches."""
        t = self.norm_teacher(teacher.flatten(2).transpose(1, 2))
        s = self.norm_student(student.flatten(2).transpose(1, 2))

        def back(tokens: Tensor, like: Tensor) -> Tensor:
            return tokens.transpose(1, 2).reshape(like.shape)

        from_student = back(self.to_teacher(t, s), teacher)
        from_teacher = back(self.to_student(s, t), student)
        return teacher + from_student, student + from_teacher
