from .data_root import check_data_exists, retarget, with_data

__all__ = ['check_data_exists', 'retarget', 'with_data']
