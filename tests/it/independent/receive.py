"""Receives recorded requests with libraries that know nothing of this project, and says what they understood.

Reads one request per line from the file named first: {"mode", "headers", "body" (base64), "secret"}. Writes one line for
each: {"webhook": what Standard Webhooks verified, "event": the attributes and "data" as CloudEvents read them}, or
{"refused": why}.
"""

import base64
import datetime
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook


def is_text(body):
    try:
        body.decode()
        return True
    except UnicodeDecodeError:
        return False


def shown(value):
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.timezone.utc).isoformat()
    return value


def receive(request):
    headers, body = request["headers"], base64.b64decode(request["body"])
    understood = {}
    # The library takes every body for text.
    if is_text(body):
        payload = Webhook(request["secret"]).verify(body, headers, json_parse=request["mode"] == "standard")
        understood["webhook"] = payload if request["mode"] == "standard" else True
    if request["mode"] in ("binary", "structured"):
        event = from_http(HTTPMessage(headers=headers, body=body), JSONFormat())
        understood["event"] = {name: shown(value) for name, value in event.get_attributes().items()}
        understood["data"] = shown(event.get_data())
    return understood


with open(sys.argv[1], encoding="utf-8") as requests:
    for line in requests:
        try:
            understood = receive(json.loads(line))
        except Exception as error:  # whatever it is, the request was not accepted
            understood = {"refused": repr(error)}
        print(json.dumps(understood))
