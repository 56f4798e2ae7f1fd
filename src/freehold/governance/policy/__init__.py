"""What a request may reach: its class, an endpoint's facts, and the clause of a policy that decides.

classes.py        the classes of data, ordered; settings.py: which finding means which class (classes.toml)
contents.py       everything in a body that says something; shape.py: what it asks for, and what is unknown in it
spelling.py       all readings of a text: without Unicode's disguises (confusables.py), with escapes undone (escapes.py)
detect_*.py       what is looked for, with check digits where there are some; markers.py and path_glob.py: names and
                  paths of one's own
classify.py       body -> class and findings; whatever fails or takes too long makes the class "unknown"
facts.py          what is known about an endpoint; what is not known is the word "unknown", never left out
rules.py          Cedar policies with a schema and the clauses that always hold (base.cedar)
choice.py         ordered candidates -> the one that may answer, or none
record.py         what is kept of it; cases.py: tables of cases; profiles.py: policies that come with the package
"""
