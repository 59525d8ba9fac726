from .data_root import check_data_exists, retarget

__all__ = ['check_data_exists', 'retarget']
