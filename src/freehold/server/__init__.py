"""The HTTP server: wire types, routes, streaming. It knows requests and tokens; it touches no tensors.

backend.py        the one protocol that the server needs from an engine
service.py        what all generating routes share: prepare a chat, answer it whole or as events
answer.py         one choice, as parts become certain; generation.py: the running choices of one HTTP request
event_stream.py   the same, as server-sent events, in the form of an API's EventWriter
wire.py           strict objects, refusals by name; json_body.py: bytes -> JSON value, with limits
errors.py         our exceptions -> status and code; refusals.py: an answer in the form of the path's API
board.py          what is being answered now; routes_requests, routes_models, routes_page: routes of no API's own
openai/           chat completions, completions, tokenize
responses/        OpenAI's Responses
messages/         Anthropic's Messages
operation/        keys, limits, metrics, logs, connections, and the guards that every request passes
page/             the web page's files, as the browser gets them
openapi.py        the description of it all; app.py: create_app; run.py: a process around it
"""
