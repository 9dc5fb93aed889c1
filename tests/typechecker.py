"""The check behind every annotation when tests run: beartype, taking a whole number where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
