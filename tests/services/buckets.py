"""The command line beside an S3 server, and what it leaves in buckets."""

import os
import subprocess
import sys

import s3fs
from runs import ROOT

PATIENCE = 180.0


def start(*words):
    """Start the command line, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "strainflow", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*words):
    """Run the command line; return its exit code and all that it said."""
    process = start(*words)
    said, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors, errors
    return process.returncode, said, errors


def refused(*words):
    """Run the command line, which must refuse with one sentence; return that."""
    code, said, errors = call(*words)
    (line,) = errors.strip().splitlines()
    assert (code, said) == (2, ""), (code, said, errors)
    return line


def fresh_client(**options):
    """An S3 file system that sees what others write."""
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **options)


def upload(s3, folder):
    """Copy a data set from the disk to a new bucket; return its URL."""
    bucket = s3.bucket()
    s3fs.S3FileSystem().put(str(folder), f"{bucket}/events.zarr", recursive=True)
    return f"s3://{bucket}/events.zarr"


def download(url, folder):
    """Copy a data set back to the disk."""
    fresh_client().get(url, str(folder), recursive=True)
    return folder


def uploads(url):
    """The keys of the uploads that were begun and neither completed nor aborted."""
    bucket = url.removeprefix("s3://").partition("/")[0]
    return [item["Key"] for item in fresh_client().list_multipart_uploads(bucket)]
