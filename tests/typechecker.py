"""The check behind every annotation when tests run: beartype, where a whole number may be a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
