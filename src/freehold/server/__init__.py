"""The HTTP server: wire types, routes, streaming. It knows requests and tokens; it touches no tensors.

backend.py       the one protocol that the server needs from an engine
wire_openai.py   what OpenAI's clients send and expect
json_body.py     bytes -> JSON value, with limits
errors.py        our exceptions -> status codes and error bodies
guards.py        what every HTTP request must pass: internal errors, key or host name, limits, body; and who sees it
refusals.py      what a guard answers, in the form of the path's API
principal.py     who asks; keys.py, key_file.py: by which key; limits.py, budget_book.py: how much
observation.py   what a request did; metrics.py, logs.py: where that is told; watched_backend.py: how it is seen
connections.py   how many connections, and how slow they may be; tls.py: their certificate
lifecycle.py     serving, draining, ending; operation.py: all parts of this kind; options.py: their settings
generation.py    the running choices of one HTTP request
event_stream.py  the same, as server-sent events
routes_*.py      one file for each group of routes
app.py           create_app: all of it together
run.py           reserve_port, serve: a process around it
"""
