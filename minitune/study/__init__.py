"""The mathematics at work: what a model does with one sentence, as numbers and as a page.

trace.py     one forward and one backward, with everything on the way kept
page.py      a trace as one HTML file that needs nothing but a browser
trace.html   the page that the numbers are put into
"""
