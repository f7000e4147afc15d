"""What schemathesis has to be told about the API: loaded by tests/app/test_schema.py."""

import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")  # of tus
