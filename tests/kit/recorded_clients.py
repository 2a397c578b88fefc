"""Requests as KServe's and MLServer's own clients sent them, recorded by a proxy between them and this API.

KServe 0.21.0: ``InferenceRESTClient.infer``. MLServer 1.7.1: ``mlserver infer``, also with ``--binary-data`` and with
``--batch-size``. The packages are too heavy to be installed for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recorded:
    """One ``POST /v2/models/<model>/infer``: its own headers, the JSON of its body and what follows that."""

    model: str
    headers: dict[str, str]
    json: bytes
    binary: bytes = b""
    texts: list[str] = field(default_factory=list)  #: for ``embed``, what was asked for


def kserve(model: str, json: bytes, binary: bytes = b"", texts: list[str] | None = None) -> Recorded:
    headers = {"accept-encoding": "gzip, deflate", "user-agent": "python-httpx/0.28.1"}
    if binary:
        headers |= {"inference-header-content-length": str(len(json)), "content-type": "application/octet-stream"}
    else:
        headers |= {"content-type": "application/json"}
    return Recorded(model, headers, json, binary, texts or [])


def mlserver(puid: str, json: bytes, binary: bytes = b"", texts: list[str] | None = None) -> Recorded:
    headers = {"content-type": "application/json", "seldon-puid": puid, "x-request-id": puid}
    headers |= {"accept-encoding": "gzip, deflate, br", "user-agent": "Python/3.11 aiohttp/3.14.5"}
    if binary:
        headers |= {"Inference-Header-Content-Length": str(len(json))}
    return Recorded("embed", headers, json, binary, texts or [])


TWO, FIVE = ["hello", "good bye"], ["text 0", "text 1", "text 2", "text 3", "text 4"]
EVENT = rb"{\"kind\": \"click\", \"time\": \"2026-11-23T12:00:00Z\", \"device\": {\"ua\": \"python-requests/2.32\"}}"

KSERVE = {
    "embed": kserve(
        "embed",
        b'{"id":"180bdffe-f6bb-4eef-a594-699cfeaa0e1a","model_name":"embed","inputs":[{"name":"text","shape":[2],'
        b'"datatype":"BYTES","data":["hello","good bye"]}],"outputs":[{"name":"embedding","parameters":'
        b'{"binary_data":false}}]}',
        texts=TWO,
    ),
    "embed, binary": kserve(
        "embed",
        b'{"id":"4a212563-670d-49b4-a087-5d81ca7c8ea2","model_name":"embed","inputs":[{"name":"text","shape":[2],'
        b'"datatype":"BYTES","parameters":{"binary_data_size":21}}],"outputs":[{"name":"embedding","parameters":'
        b'{"binary_data":true}}]}',
        b"\x05\x00\x00\x00hello\x08\x00\x00\x00good bye",
        texts=TWO,
    ),
    "antifraud": kserve(
        "antifraud",
        b'{"id":"5f80bd32-d710-4bf4-8bb2-1271f6caaafd","model_name":"antifraud","inputs":[{"name":"input",'
        b'"shape":[1],"datatype":"BYTES","data":["' + EVENT + b'"]}],"outputs":[{"name":"output","parameters":'
        b'{"binary_data":false}}]}',
    ),
    "antifraud, binary": kserve(
        "antifraud",
        b'{"id":"13e9a07d-11bb-43bd-b4f0-27fe8a223b7e","model_name":"antifraud","inputs":[{"name":"input",'
        b'"shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":95}}],"outputs":[{"name":"output",'
        b'"parameters":{"binary_data":true}}]}',
        b"[\x00\x00\x00" + EVENT.replace(b"\\", b""),
    ),
    "parameters": kserve(
        "embed",
        b'{"id":"6f835801-a09d-46f7-afe0-684d3a981e10","model_name":"embed","inputs":[{"name":"text","shape":[2],'
        b'"datatype":"BYTES","data":["a","b"]}],"parameters":{"priority":1,"timeout":5000000}}',
        texts=["a", "b"],
    ),
}
MLSERVER = {
    "infer": mlserver(
        "92e1a30d-9398-4d41-a0a7-257aff81ebf2",
        b'{"id":"92e1a30d-9398-4d41-a0a7-257aff81ebf2","inputs":[{"name":"text","shape":[1],"datatype":"BYTES",'
        b'"data":["text 0"]}],"parameters":{"binary_data_output":true}}',
        texts=FIVE[:1],
    ),
    "infer --binary-data": mlserver(
        "8dace0e7-ddfc-411a-b2cd-50658f359586",
        b'{"id":"8dace0e7-ddfc-411a-b2cd-50658f359586","inputs":[{"name":"text","shape":[1],"datatype":"BYTES",'
        b'"parameters":{"binary_data_size":10}}],"parameters":{"binary_data_output":true}}',
        b"\x06\x00\x00\x00text 0",
        texts=FIVE[:1],
    ),
    "infer --batch-size 5": mlserver(
        "06f5a628-b31b-4370-9d11-a7ac780c7a72",
        b'{"id":"06f5a628-b31b-4370-9d11-a7ac780c7a72","inputs":[{"name":"text","shape":[5],"datatype":"BYTES",'
        b'"data":["text 0","text 1","text 2","text 3","text 4"]}],"parameters":{"binary_data_output":true}}',
        texts=FIVE,
    ),
}
