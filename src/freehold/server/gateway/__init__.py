"""One door in front of several endpoints: what may leave through it, and to where, is decided in `governance.policy`.

endpoints.py      the file endpoints.toml; apis.py: the paths of the two families of APIs
intake.py         a request body -> JSON value and class, beside the event loop
upstream.py       one request to an endpoint; what an endpoint's failure is to the client
answers.py        what passes through, read along: model, usage, the ends of events
passage.py        an allowed request on its way, and its record
gateway.py        decisions and records; app.py: the HTTP application; run.py: a process around it
"""
