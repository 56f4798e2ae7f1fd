"""The HTTP server: wire types, routes, streaming. It knows requests and tokens; it touches no tensors.

backend.py       the one protocol that the server needs from an engine
wire_openai.py   what OpenAI's clients send and expect
json_body.py     bytes -> JSON value, with limits
errors.py        our exceptions -> status codes and error bodies
guards.py        what every HTTP request must pass: internal errors, host name, key, body size
generation.py    the running choices of one HTTP request
event_stream.py  the same, as server-sent events
routes_*.py      one file for each group of routes
app.py           create_app: all of it together
run.py           reserve_port, serve: a process around it
"""
