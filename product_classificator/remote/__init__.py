"""Files at URLs: object stores are read and written like disks, photos are fetched from untrusted servers."""
