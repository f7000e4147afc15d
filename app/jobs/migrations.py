"""What has changed in job records and events since their first version; see :mod:`known_core.schema`.

A field that older code can do without needs no step: it is absent from older records, and read so.
"""

from known_core.schema import Step

JOB_STEPS: tuple[Step, ...] = ()  # of the fields of the hash, as text
EVENT_STEPS: tuple[Step, ...] = ()  # of an entry of the stream: data is JSON. states.lua writes their version
