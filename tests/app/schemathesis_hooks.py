"""What schemathesis has to be told: the bodies of tus are bytes."""

import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
