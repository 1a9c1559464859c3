"""A plan, or a model's sites, as a picture: one block of each kind, what is inserted marked."""

from peftc.picture.blocks import picture
from peftc.picture.page import page, sites_page

__all__ = ["page", "picture", "sites_page"]
