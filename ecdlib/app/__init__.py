"""The graphical interface, ``ecd app``: predictions for densities and structures that you drop, the latent database.

It serves this machine only, needs no network, and writes nothing but the upload that is being read. What reads a file
or computes runs in a process of the session (see :class:`ecdlib.base.workers.Bounded`): whatever a file does there,
the page, the other sessions and the end of the program are not held up.
"""

from ecdlib.app.server import serve as serve
