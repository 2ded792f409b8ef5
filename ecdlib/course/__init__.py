"""The course: data, exercises, grading, pages."""
