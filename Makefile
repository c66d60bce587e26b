# make book: from a fresh clone to the built, executed book. make test: to all checks.
# Both make their own environment. Without make: see README.md, "Without make".

PYTHON ?= python3  # any of 3.11 to 3.13, for the environment
IN_VENV := .venv/bin/python

.PHONY: book test lint numerics notebooks records bench serve pdf shots clean environment

book: environment  ## the book, in _build/html
	@$(IN_VENV) tools/build.py

test: environment  ## every check
	@$(IN_VENV) tools/check.py

lint: environment  ## style and types only
	@$(IN_VENV) tools/check.py lint

numerics: environment  ## the tests that compute, as other processors compute
	@$(IN_VENV) tools/check.py numerics

notebooks: environment  ## the notebooks beside the chapters
	@$(IN_VENV) tools/notebooks.py

records: environment  ## the results over many seeds, in book/records; hours, may be stopped
	@$(IN_VENV) tools/records.py

bench: environment  ## speed and memory against the naive forms
	@$(IN_VENV) -m pytest -q -s tests/benchmarks

serve: book  ## the book at http://localhost:8000
	@$(IN_VENV) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

environment:
	@$(PYTHON) tools/environment.py

pdf: book  ## the whole book as one PDF, _build/closing-the-gap.pdf
	@$(IN_VENV) tools/pdf.py

shots: environment  ## pictures of every built page, three widths, light and dark, in _build/shots
	@$(IN_VENV) tools/shots.py

clean:  ## what was built; the environment and the fetched files stay
	rm -rf _build
