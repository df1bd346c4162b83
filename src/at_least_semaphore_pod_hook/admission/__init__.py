"""AdmissionReview in and out: annotations, injection, patch."""
